# SPDX-License-Identifier: Apache-2.0
"""Frames of a video file, sampled by their timestamps."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer
from av.video.frame import VideoFrame as DecodedFrame
from av.video.stream import VideoStream

__all__ = ["VideoError", "VideoFrame", "VideoSource", "open_video"]

# A frame counts as due when it is early by less than this part of the source's frame interval:
# containers round their timestamps (Matroska to a millisecond).
_EARLY = 0.1
# A source that stops this much before its announced end was cut off. A few frames, or one percent,
# are the difference between what containers announce and what they hold.
_MISSING_FRAMES = 3.5
_MISSING_PART = 0.01


class VideoError(ValueError):
    """A video that cannot be read, or not to its end; the message names file and frame.

    Parameters
    ----------
    message : str
        One sentence.
    frames_decoded : int
        How many frames of the source had been decoded when it happened; 0 if none.
    """

    def __init__(self, message: str, frames_decoded: int = 0) -> None:
        super().__init__(message)
        self.frames_decoded = frames_decoded


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One sampled frame.

    Attributes
    ----------
    image : ndarray
        (H, W, 3) uint8, RGB, turned upright.
    time : float
        Seconds since the first frame of the video.
    number : int
        Number of the frame in the source, from 0.
    index : int
        Running number among the sampled frames, from 0.
    """

    image: npt.NDArray[np.uint8]
    time: float
    number: int
    index: int


class VideoSource:
    """Iterates over the sampled frames of a video; made by `open_video`.

    It can be iterated once. When the file turns out to be damaged, every frame before the damage
    is yielded first and then `VideoError` is raised.

    Attributes
    ----------
    path : Path
        The file.
    width, height : int
        Pixels, as stored (before turning upright).
    codec : str
        Name of the codec, for example "h264".
    source_fps : float or None
        Average frames per second of the source.
    duration : float or None
        Seconds from the first to the end of the last frame, if the container says.
    expected_frames : int or None
        Number of frames that will be yielded, if it can be told; for a progress bar.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | None = None,
        start: float = 0.0,
        duration: float | None = None,
        max_frames: int | None = None,
    ) -> None:
        _check_arguments(fps, start, duration, max_frames)
        self.path = Path(path)
        self._fps = fps
        self._start = start
        self._stop = math.inf if duration is None else start + duration
        self._max_frames = max_frames
        self._container = _open(self.path)
        self._decoded = 0
        self._used = False
        try:
            self._stream = _video_stream(self._container, self.path)
        except VideoError:
            self._container.close()
            raise
        self._stream.thread_type = "AUTO"
        context = self._stream.codec_context
        self.width, self.height, self.codec = context.width, context.height, context.name
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.source_fps = float(rate) if rate else None
        self.duration = _duration(self._container, self._stream)
        self.expected_frames = self._expected_frames()

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the sampled frames in time order.

        Yields
        ------
        VideoFrame
            Each frame of the source at most once.

        Raises
        ------
        VideoError
            If the video cannot be decoded to its end, holds no frame, or was iterated before.
        """
        if self._used:
            raise VideoError(f"{self.path} was read already: open it again")
        self._used = True
        index, due = 0, self._start
        early = _EARLY / self.source_fps if self.source_fps else 1e-3
        if self._max_frames == 0:
            return
        for number, time, frame in self._decode():
            if time >= self._stop - early:
                break
            if time < due - early:
                continue
            if self._fps is not None:
                # The next multiple of the interval after this frame: a gap in the source does
                # not make the frames behind it bunch up.
                passed = math.floor((time - self._start + early) * self._fps) + 1
                due = self._start + passed / self._fps
            yield VideoFrame(_upright(frame), time, number, index)
            index += 1
            if index == self._max_frames:
                break
        if index == 0:
            raise VideoError(f"{self.path} has no frame from {self._start:g} s on", self._decoded)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _decode(self) -> Iterator[tuple[int, float, DecodedFrame]]:
        """Yield (number in the source, seconds, frame) and find out whether the end is missing."""
        origin = self._origin()
        seeked = self._seek(origin)
        time = 0.0
        for frame in self._frames():
            stamp = frame.time
            if stamp is None:
                if self.source_fps is None:
                    raise self._damaged("has no timestamp and the file no frame rate")
                stamp = (origin or 0.0) + self._decoded / self.source_fps
            if origin is None:
                origin = stamp
            time = stamp - origin
            number = self._decoded
            if seeked and self.source_fps:
                number = round(time * self.source_fps)
            self._decoded += 1
            yield number, time, frame
        self._check_end(time)

    def _frames(self) -> Iterator[DecodedFrame]:
        """Yield decoded frames; on damage, first those that the decoder still holds."""
        try:
            for packet in self._container.demux(self._stream):
                yield from self._sound(packet.decode())
        except (av.FFmpegError, OSError) as error:
            try:
                rest = self._stream.decode(None)
            except (av.FFmpegError, OSError):
                rest = []
            yield from self._sound(rest)
            raise self._damaged(f"cannot be decoded ({_reason(error)})") from error

    def _sound(self, frames: list[DecodedFrame]) -> Iterator[DecodedFrame]:
        for frame in frames:
            if frame.is_corrupt:
                raise self._damaged("is damaged")
            yield frame

    def _damaged(self, what: str) -> VideoError:
        return VideoError(f"{self.path}: frame {self._decoded} {what}", self._decoded)

    def _check_end(self, last: float) -> None:
        if self._decoded == 0:
            where = f" from {self._start:g} s on" if self._start else ""
            raise VideoError(f"{self.path} holds no frame{where}")
        if self.duration is None or not self.source_fps:
            return
        missing = self.duration - last
        if missing > max(_MISSING_FRAMES / self.source_fps, _MISSING_PART * self.duration):
            raise VideoError(
                f"{self.path} ends early: its last frame is frame {self._decoded - 1} at "
                f"{last:.2f} s, but it should last {self.duration:.2f} s",
                self._decoded,
            )

    def _origin(self) -> float | None:
        """Return the timestamp of the first frame in seconds, if the container says."""
        start, base = self._stream.start_time, self._stream.time_base
        return None if start is None or base is None else float(start * base)

    def _seek(self, origin: float | None) -> bool:
        """Go to the key frame before the start, so that a late start need not decode it all."""
        base = self._stream.time_base
        if self._start == 0.0 or origin is None or base is None or not self.source_fps:
            return False
        if self.duration is not None and self._start >= self.duration:
            raise VideoError(
                f"{self.path} has no frame from {self._start:g} s on: it lasts "
                f"{self.duration:.2f} s"
            )
        target = int((origin + self._start) / float(base))
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self.path}: cannot seek to {self._start:g} s ({_reason(error)})"
            ) from error
        return True

    def _expected_frames(self) -> int | None:
        if self.duration is None:
            return self._max_frames
        seconds = max(0.0, min(self._stop, self.duration) - self._start)
        if not self.source_fps:
            return self._max_frames
        # The last frame starts one interval before the end.
        last = max(0.0, seconds - (1 - _EARLY) / self.source_fps)
        count = 1 + math.floor(last * min(self._fps or math.inf, self.source_fps))
        return count if self._max_frames is None else min(count, self._max_frames)


def open_video(
    path: str | os.PathLike[str],
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_frames: int | None = None,
) -> VideoSource:
    """Open a video file for reading its frames.

    Parameters
    ----------
    path : path
        Any file that FFmpeg can read.
    fps : float, optional
        Frames per second to sample: the first frame at or after each multiple of 1 / fps (early
        by a tenth of the source's frame interval still counts). A source with fewer frames
        yields each of them once. Every frame by default.
    start : float
        Seconds to leave out at the beginning.
    duration : float, optional
        Seconds to read; to the end by default.
    max_frames : int, optional
        Stop after this many sampled frames.

    Returns
    -------
    VideoSource
        An iterable of `VideoFrame`, and a context manager that closes the file.

    Raises
    ------
    VideoError
        If the file is missing, a directory, unreadable, or not a video. A video that is damaged
        further on raises it while it is iterated, after the sound frames.
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> with open_video("street.mp4", fps=2) as video:      # doctest: +SKIP
    ...     times = [frame.time for frame in video]
    """
    return VideoSource(path, fps=fps, start=start, duration=duration, max_frames=max_frames)


def _check_arguments(
    fps: float | None, start: float, duration: float | None, max_frames: int | None
) -> None:
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"`open_video`: fps must be a positive number, got {fps:g}")
    if not (start >= 0 and math.isfinite(start)):
        raise ValueError(f"`open_video`: start must be 0 or more seconds, got {start:g}")
    if duration is not None and not duration > 0:
        raise ValueError(f"`open_video`: duration must be more than 0 seconds, got {duration:g}")
    if max_frames is not None and max_frames < 0:
        raise ValueError(f"`open_video`: max_frames must be 0 or more, got {max_frames}")


def _open(path: Path) -> InputContainer:
    if not path.exists():
        raise VideoError(f"{path}: there is no such file")
    if path.is_dir():
        raise VideoError(f"{path} is a directory, not a video file")
    try:
        if path.stat().st_size == 0:
            raise VideoError(f"{path} is empty (0 bytes)")
        container = av.open(str(path), mode="r")
    except PermissionError as error:
        raise VideoError(f"{path} cannot be read: permission denied") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} is not a video, or cut off ({_reason(error)})") from error
    if container.format.name == "tty":  # FFmpeg draws any text file as a terminal
        container.close()
        raise VideoError(f"{path} is not a video but a text file")
    return container


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise VideoError(f"{path} has no video stream")
    stream = container.streams.video[0]
    # A file that FFmpeg recognises by its name or a few bytes only, with nothing to decode.
    if stream.codec_context is None:
        raise VideoError(f"{path} has a video stream that FFmpeg has no decoder for")
    return stream


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the length of the video stream in seconds, if the container says."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        # The container counts from 0, the stream from its first frame.
        start = float(container.start_time or 0) / av.time_base
        return float(container.duration) / av.time_base - max(0.0, start)
    return None


def _upright(frame: DecodedFrame) -> npt.NDArray[np.uint8]:
    image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    # Degrees counterclockwise, as phones write it. PyAV before 14 does not tell.
    quarter_turns = round(getattr(frame, "rotation", 0) / 90) % 4
    if quarter_turns:
        image = np.ascontiguousarray(np.rot90(image, quarter_turns))
    return image


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".")
