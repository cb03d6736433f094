# SPDX-License-Identifier: Apache-2.0
"""Frames of a recording or a live source, sampled in time."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame as DecodedFrame

from stc_video.video.decoder import Decoder
from stc_video.video.errors import VideoError, VideoWarning
from stc_video.video.location import locate
from stc_video.video.newest import Newest
from stc_video.video.picture import rgb_of
from stc_video.video.timeline import SourceStats, Timeline

# A frame counts as due when it is early by less than this part of the source's frame interval, or
# so many seconds: containers round their timestamps (Matroska to a millisecond).
_EARLY, _MOST_EARLY = 0.1, 0.02
_TIMEOUT = 10.0


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One sampled frame.

    Attributes
    ----------
    image : ndarray
        (H, W, 3) uint8, RGB, upright and with square pixels.
    time : float
        Seconds since the first frame of the video; never less than those of the frame before.
    number : int
        Number of the frame in the source, from 0.
    index : int
        Running number among the sampled frames, from 0.
    decoding : float
        Seconds of work behind it: decoding since the frame before, and turning it into RGB.
    """

    image: npt.NDArray[np.uint8]
    time: float
    number: int
    index: int
    decoding: float = 0.0


class _Decoded(NamedTuple):
    number: int
    time: float
    clock: float  # seconds that the sampling goes by: of the timestamps, or of the arrival
    frame: DecodedFrame


class VideoSource:
    """Iterates over the sampled frames of a video; made by `open_video`.

    It can be iterated once. When a recording turns out to be damaged, every frame before the damage
    is yielded first and then `VideoError` is raised. A live source gives its newest frame whenever
    one is due; what timestamps were like is in `stats` and, if something was wrong, in a
    `VideoWarning` at the end.

    Attributes
    ----------
    path : Path or None
        The file; None for a camera or an address.
    shown, name : str
        Where the video is, without a password, and a short name.
    is_live : bool
        Whether frames come in their own time: of a camera, a pipe, or an address that announces
        neither a duration nor a length in bytes.
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
    stopped : callable
        Is asked between frames and while waiting for one; true ends the iteration.
    clock : callable
        Seconds by which live frames arrive; `time.monotonic`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        fps: float | None,
        start: float,
        duration: float | None,
        max_frames: int | None,
        timeout: float,
    ) -> None:
        where = locate(source)
        self.path: Path | None = where.path
        self.shown, self.name = where.shown, where.name
        self.stopped: Callable[[], bool] = lambda: False
        self.clock: Callable[[], float] = time.monotonic
        self._fps = fps
        self._start = start
        self._stop = math.inf if duration is None else start + duration
        self._max_frames = max_frames
        self._decoder = decoder = Decoder(where, timeout)
        self.is_live = decoder.is_live
        self.width, self.height, self.codec = decoder.width, decoder.height, decoder.codec
        self.source_fps, self.duration = decoder.source_fps, decoder.duration
        self.expected_frames = self._expected_frames()
        self._timeline = Timeline()
        self._newest: Newest[_Decoded] | None = None
        self._skipped = 0
        self._used = self._closed = False

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
        try:
            yield from self.frames()
        finally:
            if notes := self.stats().notes():
                warnings.warn(f"{self.shown}: {', '.join(notes)}", VideoWarning, stacklevel=2)

    def frames(self) -> Iterator[VideoFrame]:
        """Iterate as over the source itself, without the warning at the end."""
        if self._used:
            raise VideoError(f"{self.shown} was read already: open it again")
        self._used = True
        if self._max_frames == 0:
            return
        early = min(_EARLY / (self.source_fps or math.inf), _MOST_EARLY) or 1e-3
        index, due, worked = 0, self._start, 0.0
        for number, seconds, clock, frame in self._live() if self.is_live else self._recorded():
            if clock >= self._stop - early:
                break
            if clock < due - early:
                continue
            if self._fps is not None:
                # The next multiple of the interval after this frame: a gap in the source does
                # not make the frames behind it bunch up.
                passed = math.floor((clock - self._start + early) * self._fps) + 1
                if self._newest is not None and self._newest.lost:
                    self._skipped += max(0, passed - 1 - round((due - self._start) * self._fps))
                due = self._start + passed / self._fps
            begin = time.perf_counter()
            image = self._picture(frame)
            decoded = self._decoder.seconds
            took = decoded - worked + time.perf_counter() - begin
            worked = decoded
            yield VideoFrame(image, seconds, number, index, took)
            index += 1
            if index == self._max_frames:
                break
        if index == 0 and not self.stopped():
            raise VideoError(
                f"{self.shown} has no frame from {self._start:g} s on", self._decoder.decoded
            )

    def stats(self) -> SourceStats:
        """Return what was read so far, and what its timestamps were like."""
        line, decoder = self._timeline, self._decoder
        return SourceStats(
            decoded=decoder.decoded,
            skipped=self._skipped,
            damaged=decoder.damaged,
            resets=line.resets,
            jumps=line.jumps,
            gaps=line.gaps,
            drifts=line.drifts,
            times="arrival" if line.by_arrival or not line.has_stamps else "source",
        )

    def close(self) -> None:
        """End the iteration and close the source.

        A live source that is being read is closed by the thread that reads it, when its next
        packet or timeout comes.
        """
        self._closed = True
        if self._newest is None:
            self._decoder.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _is_over(self) -> bool:
        return self._closed or self.stopped()

    def _recorded(self) -> Iterator[_Decoded]:
        """Yield the frames of a recording and find out whether its end is missing."""
        decoder, fps = self._decoder, self.source_fps
        seeked = self._start > 0.0 and decoder.seek(self._start)
        self._timeline = Timeline(1.0 / fps if fps else None, decoder.origin if seeked else None)
        seconds = 0.0
        for frame in decoder.frames(self._is_over):
            if frame.time is None and not fps:
                raise decoder.damage("has no timestamp and the file no frame rate")
            seconds = self._timeline.of_file(frame.time)
            number = round(seconds * fps) if seeked and fps else decoder.decoded
            yield _Decoded(number, seconds, seconds, frame)
        if not self._is_over():
            decoder.check_end(seconds)

    def _live(self) -> Iterator[_Decoded]:
        """Yield the newest frame of a live source, again and again."""
        self._newest = Newest(self._arriving())
        try:
            yield from self._newest.taken(self._is_over)
        finally:
            self._closed = True

    def _arriving(self) -> Iterator[_Decoded]:
        """Yield every frame of a live source as it comes, in a thread of its own."""
        decoder = self._decoder
        try:
            for frame in decoder.frames(lambda: self._closed):
                stamp = frame.time if decoder.has_times else None
                seconds, clock = self._timeline.of_live(stamp, self.clock())
                yield _Decoded(decoder.decoded, seconds, clock, frame)
        finally:
            decoder.close()

    def _picture(self, frame: DecodedFrame) -> npt.NDArray[np.uint8]:
        try:
            return rgb_of(frame, self._decoder.pixel_aspect)
        except ValueError as error:
            raise VideoError(f"{self.shown}: {error}", self._decoder.decoded) from error

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
    source: str | os.PathLike[str],
    *,
    fps: float | None = None,
    start: float = 0.0,
    duration: float | None = None,
    max_frames: int | None = None,
    timeout: float = _TIMEOUT,
) -> VideoSource:
    """Open a video for reading its frames.

    Parameters
    ----------
    source : str or path
        Any file that FFmpeg can read; a camera such as ``/dev/video0``; or an address such as
        ``rtsp://...`` or ``http://...``.
    fps : float, optional
        Frames per second to sample. Of a recording, the first frame at or after each multiple of
        1 / fps (early by a tenth of the source's frame interval, at most 20 ms, still counts); of a
        live source, the newest frame at these times of the clock. A source with fewer frames yields
        each of them once. Every frame by default.
    start : float
        Seconds to leave out at the beginning.
    duration : float, optional
        Seconds to read; to the end by default.
    max_frames : int, optional
        Stop after this many sampled frames.
    timeout : float
        Seconds that an address may take to answer, and be silent between two frames.

    Returns
    -------
    VideoSource
        An iterable of `VideoFrame`, and a context manager that closes the source.

    Raises
    ------
    VideoError
        If the source is missing, a directory, unreadable, or not a video. A video that is damaged
        further on, or breaks off, raises it while it is iterated, after the sound frames.
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> with open_video("street.mp4", fps=2) as video:      # doctest: +SKIP
    ...     times = [frame.time for frame in video]
    """
    if fps is not None and not (fps > 0 and math.isfinite(fps)):
        raise ValueError(f"`open_video`: fps must be a positive number, got {fps:g}")
    if not (start >= 0 and math.isfinite(start)):
        raise ValueError(f"`open_video`: start must be 0 or more seconds, got {start:g}")
    if duration is not None and not duration > 0:
        raise ValueError(f"`open_video`: duration must be more than 0 seconds, got {duration:g}")
    if max_frames is not None and max_frames < 0:
        raise ValueError(f"`open_video`: max_frames must be 0 or more, got {max_frames}")
    return VideoSource(source, fps, start, duration, max_frames, timeout)
