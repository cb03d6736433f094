# SPDX-License-Identifier: Apache-2.0
"""The frames of one video stream, as FFmpeg decodes them, and what is known of it before."""

from __future__ import annotations

import errno
import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.frame import VideoFrame as DecodedFrame
from av.video.stream import VideoStream

from stc_video.video.errors import VideoError
from stc_video.video.location import Location

# A source that stops this much before its announced end was cut off. A few frames, or one percent,
# are the difference between what containers announce and what they hold.
_MISSING_FRAMES = 3.5
_MISSING_PART = 0.01
# Else timestamps that begin again, as where recordings were joined, are 26.5 h ahead.
_OPTIONS = {"correct_ts_overflow": "0"}
_PLAYLISTS = ("hls", "hls,applehttp", "dash")
# A file of these names other files or addresses, which whoever made it may choose.
_REFERRING = {
    "applehttp",
    "concat",
    "dash",
    "hls",
    "imf",
    "sdp",
    "vapoursynth",
    "webm_dash_manifest",
}
_SELF_CONTAINED = ",".join(sorted(av.formats_available - _REFERRING))
# An index and padding behind the frames are small; what is a third of them is neither.
_MOST_REST, _REST_BYTES = 1 / 3, 1 << 16
_GIVEN_UP = 100  # damaged packets in a row, of a live source
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a piece of music
_NO_TIMES = 0x80  # AVFMT_NOTIMESTAMPS: a format without timestamps; FFmpeg counts at 25 fps
_BROKEN_TIMES = 0x200  # AVFMT_TS_DISCONT: a format whose timestamps may begin again


class Decoder:
    """Opens a source and decodes its video stream.

    Parameters
    ----------
    where
        The source.
    timeout
        Seconds that an address may take to answer, and be silent.

    Attributes
    ----------
    width, height, codec, source_fps, duration, is_live
        As in `VideoSource`.
    pixel_aspect
        Width of a pixel over its height, or None if unknown.
    decoded, damaged
        Frames so far.
    seconds
        That decoding took so far, without waiting for data.
    """

    def __init__(self, where: Location, timeout: float) -> None:
        self._where, self._timeout = where, timeout
        self._container = _open(where, timeout)
        try:
            stream = self._stream = _video_stream(self._container, where.shown)
        except VideoError:
            self._container.close()
            raise
        context = stream.codec_context
        self.width, self.height, self.codec = context.width, context.height, context.name
        rate = stream.average_rate or stream.guessed_rate
        self.source_fps = float(rate) if rate else None
        self.duration = _duration(self._container, stream)
        self.pixel_aspect = stream.sample_aspect_ratio
        self.is_live = self._is_live()
        # Frame by frame, threads would hold as many frames back as there are threads.
        stream.thread_type = "SLICE" if self.is_live else "AUTO"
        self.decoded = self.damaged = 0
        self.seconds = 0.0
        self._end, self._position = -math.inf, 0

    def _is_live(self) -> bool:
        """A recording says how long it is, in seconds or in bytes."""
        if self._where.path is not None and not self._where.path.is_fifo():
            return False
        # A playlist's size is not that of its video, and some cameras announce billions of bytes.
        has_size = self._container.format.name not in (*_PLAYLISTS, "mpjpeg")
        return self._container.duration is None and not (has_size and self._container.size > 0)

    @property
    def origin(self) -> float | None:
        """Timestamp of the first frame in seconds, if the container says."""
        start, base = self._stream.start_time, self._stream.time_base
        return None if start is None or base is None else float(start * base)

    @property
    def has_times(self) -> bool:
        """Whether this format has timestamps."""
        return not _bits(self._container.format.flags) & _NO_TIMES

    @property
    def has_one_time(self) -> bool:
        """Whether timestamps of this format cannot begin again in the middle."""
        container = self._container.format
        return container.name in _PLAYLISTS or not _bits(container.flags) & _BROKEN_TIMES

    def close(self) -> None:
        """Close the source."""
        self._container.close()

    def seek(self, start: float) -> bool:
        """Go to the key frame before a time, so that a late start need not decode it all."""
        origin, base = self.origin, self._stream.time_base
        if origin is None or base is None or not self.source_fps or not self.has_one_time:
            return False
        if self.duration is not None and start >= self.duration:
            raise VideoError(
                f"{self._where.shown} has no frame from {start:g} s on: it lasts "
                f"{self.duration:.2f} s"
            )
        target = int((origin + start) / float(base))
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self._where.shown}: cannot seek to {start:g} s ({_reason(error)})"
            ) from error
        return True

    def frames(self, stopped: Callable[[], bool]) -> Iterator[DecodedFrame]:
        """Yield decoded frames.

        Of a recording, damage is an error behind the sound frames; of a live source, frames that
        are damaged are left out and counted.

        Raises
        ------
        VideoError
            If the source cannot be read further, or holds no frame.
        """
        packets, in_a_row = self._container.demux(self._stream), 0
        while not stopped():
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                frames = self._timed(packet.decode)
            except (av.FFmpegError, OSError) as error:
                in_a_row += 1
                if self.is_live and isinstance(error, av.InvalidDataError) and in_a_row < _GIVEN_UP:
                    self.damaged += 1
                    packets = self._container.demux(self._stream)
                    continue
                yield from self._sound(self._held())
                raise self._broken(error) from error
            in_a_row = 0
            if packet.size and packet.pos is not None:
                self._position = packet.pos + packet.size
            if packet.pts is not None and packet.time_base is not None:
                end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
                self._end = max(self._end, end)
            yield from self._sound(frames)

    def check_end(self, last: float) -> None:
        """Raise `VideoError` if the source ended before its announced end.

        Parameters
        ----------
        last
            Seconds of its last frame, which may have been told to stand for long.
        """
        if self.decoded == 0:
            raise VideoError(f"{self._where.shown} holds no frame")
        self._check_rest()
        if self.duration is None or not self.source_fps or self.is_live:
            return
        end = max(last, self._end - (self.origin or 0.0))
        missing = self.duration - end
        if missing > max(_MISSING_FRAMES / self.source_fps, _MISSING_PART * self.duration):
            raise VideoError(
                f"{self._where.shown} ends early: its last frame is frame {self.decoded - 1} at "
                f"{last:.2f} s, but it should last {self.duration:.2f} s",
                self.decoded,
            )

    def _check_rest(self) -> None:
        """Raise `VideoError` if FFmpeg has stopped before the end of a file.

        Of recordings that were joined byte by byte, it reads some formats only to the first's end.
        """
        path, container = self._where.path, self._container
        if path is None or not path.is_file():
            return
        if "mov" in container.format.name.split(","):
            is_joined = _count_movies(path) > 1
        else:  # what other streams hold is not seen
            rest = path.stat().st_size - self._position
            is_large = rest > max(_REST_BYTES, _MOST_REST * self._position)
            is_joined = len(container.streams) == 1 and self._position > 0 and is_large
        if is_joined:
            raise VideoError(
                f"{path} goes on behind its last frame, frame {self.decoded - 1}: of recordings "
                "joined in this format only the first can be read",
                self.decoded,
            )

    def damage(self, what: str) -> VideoError:
        """Return the error for the next frame."""
        return VideoError(f"{self._where.shown}: frame {self.decoded} {what}", self.decoded)

    def _timed(self, decode: Callable[[], list[DecodedFrame]]) -> list[DecodedFrame]:
        begin = time.perf_counter()
        try:
            return decode()
        finally:
            self.seconds += time.perf_counter() - begin

    def _held(self) -> list[DecodedFrame]:
        """Frames that the decoder still holds when no more packets come."""
        try:
            frames = self._stream.decode(None)
        except (av.FFmpegError, OSError):
            return []
        for frame in frames:  # those of PyAV 13 cannot say their time otherwise
            if not frame.time_base and self._stream.time_base:
                frame.time_base = self._stream.time_base
        return frames

    def _sound(self, frames: list[DecodedFrame]) -> Iterator[DecodedFrame]:
        for frame in frames:
            if frame.is_corrupt and self.is_live:
                self.damaged += 1
                continue
            if frame.is_corrupt:
                raise self.damage("is damaged")
            yield frame
            self.decoded += 1

    def _broken(self, error: Exception) -> VideoError:
        if isinstance(error, av.ExitError):
            return VideoError(
                f"{self._where.shown} has sent nothing for {self._timeout:g} s, after "
                f"{self.decoded} frames",
                self.decoded,
            )
        if self.is_live:
            # FFmpeg's word for a server that hangs up.
            ended = isinstance(error, OSError) and error.errno == errno.EIO
            why = "the connection ended" if ended else f"it broke off ({_reason(error)})"
            return VideoError(
                f"{self._where.shown}: {why} after {self.decoded} frames", self.decoded
            )
        return self.damage(f"cannot be decoded ({_reason(error)})")


def _open(where: Location, timeout: float) -> InputContainer:
    if where.path is not None:
        _check_file(where)
    options = {**_OPTIONS, **where.options}
    if where.path is not None:
        options["format_whitelist"] = _SELF_CONTAINED
    try:
        container = av.open(
            where.url,
            mode="r",
            format=where.format,
            options=options,
            metadata_errors="replace",
            timeout=None if where.path is not None else timeout,
        )
    except PermissionError as error:
        raise VideoError(f"{where.shown} cannot be read: permission denied") from error
    except av.ExitError as error:
        raise VideoError(f"{where.shown} did not answer for {timeout:g} s") from error
    except (av.FFmpegError, OSError) as error:
        what = "cannot be read" if where.path is None else "is not a video, or cut off"
        if where.path is not None and getattr(error, "errno", None) == errno.EINVAL:
            what = "is not a video but names others, as a playlist does; open those"
        raise VideoError(f"{where.shown} {what} ({_reason(error)})") from error
    if container.format.name == "tty":  # FFmpeg draws any text file as a terminal
        container.close()
        raise VideoError(f"{where.shown} is not a video but a text file")
    return container


def _check_file(where: Location) -> None:
    path = where.path
    assert path is not None
    try:
        status = path.stat()
    except PermissionError as error:
        raise VideoError(f"{path} cannot be read: permission denied") from error
    except (OSError, ValueError) as error:  # not there, too long, a zero byte
        raise VideoError(f"{path}: there is no such file") from error
    if path.is_dir():
        raise VideoError(f"{path} is a directory, not a video file")
    if status.st_size == 0 and path.is_file():
        raise VideoError(f"{path} is empty (0 bytes)")


def _video_stream(container: InputContainer, shown: str) -> VideoStream:
    found = container.streams.video
    # PyAV before 14 does not tell.
    streams = [s for s in found if not _bits(getattr(s, "disposition", 0)) & _ATTACHED_PICTURE]
    if not streams:
        raise VideoError(f"{shown} has no video stream{', only a cover picture' if found else ''}")
    # A file that FFmpeg recognises by its name or a few bytes only, with nothing to decode.
    if streams[0].codec_context is None:
        raise VideoError(f"{shown} has a video stream that FFmpeg has no decoder for")
    return streams[0]


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    """Return the length of the video stream in seconds, if the container says."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if len(container.streams) == 1 and container.duration is not None:
        # The container counts from 0, the stream from its first frame.
        start = float(container.start_time or 0) / av.time_base
        return float(container.duration) / av.time_base - max(0.0, start)
    return None


def _bits(flags: Any) -> int:
    """Flags as a number; they were one, an enumeration, and one again."""
    return int(getattr(flags, "value", flags))


def _count_movies(path: Path) -> int:
    """Count the movies of an MP4 file, which has one unless it was joined."""
    count = 0
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            count += kind == b"moov"
            read = 8
            if size == 1 and len(head := file.read(8)) == 8:
                size, read = struct.unpack(">Q", head)[0], 16
            if size < read:  # the rest of the file
                break
            file.seek(size - read, os.SEEK_CUR)
    return count


def _reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return str(text).strip().rstrip(".")
