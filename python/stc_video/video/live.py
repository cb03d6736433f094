# SPDX-License-Identifier: Apache-2.0
"""Frames in their own time: of a file as if it were live, of a camera, or of an address."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from stc_video.video.source import VideoError, VideoFrame, open_video

__all__ = ["LiveVideo", "is_live"]

_OPEN_SECONDS, _READ_SECONDS = 10.0, 10.0


def is_live(source: str) -> bool:
    """Tell whether a source is a camera or an address, and no file."""
    return "://" in source or source.startswith("/dev/video")


class LiveVideo:
    """Iterates over a video's frames, each not before its time.

    A frame that comes more than one interval too late, because whoever iterates was busy, is
    skipped and counted.

    Parameters
    ----------
    source
        A file; a camera such as ``/dev/video0``; or an address that FFmpeg can read, such as
        ``rtsp://...`` or ``http://...``.
    fps
        Frames per second.
    fast
        A file's frames as fast as they are asked for, none skipped.
    stop
        Ends the iteration when set.

    Attributes
    ----------
    skipped
        How many frames came too late.

    Raises
    ------
    VideoError
        When iterated: if the source cannot be read, or breaks off.
    ValueError
        If ``fps`` is no positive number, or ``fast`` is asked of a camera.
    """

    def __init__(self, source: str, fps: float, stop: threading.Event, *, fast: bool) -> None:
        if not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"--fps must be a positive number, got {fps:g}")
        if fast and is_live(source):
            raise ValueError(f"--fast is for files, got {source}")
        self.skipped = 0
        self._source, self._interval = source, 1.0 / fps
        self._stop, self._fast = stop, fast

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield frames until the end, or until stopped."""
        frames = self._of_stream() if is_live(self._source) else self._of_file()
        start = None
        for frame in frames:
            if self._stop.is_set():
                return
            if not self._fast:
                if start is None:
                    start = time.monotonic() - frame.time
                early = start + frame.time - time.monotonic()
                if early < -self._interval:
                    self.skipped += 1
                    continue
                if early > 0 and self._stop.wait(early):
                    return
            yield frame

    def _of_file(self) -> Iterator[VideoFrame]:
        with open_video(Path(self._source), fps=1.0 / self._interval) as video:
            yield from video

    def _of_stream(self) -> Iterator[VideoFrame]:
        device = "v4l2" if self._source.startswith("/dev/video") else None
        try:
            timeout = (_OPEN_SECONDS, _READ_SECONDS)
            with av.open(self._source, format=device, timeout=timeout) as container:
                if not container.streams.video:
                    raise VideoError(f"{self._source} has no video stream")
                yield from self._sampled(container)
        except (av.FFmpegError, OSError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoError(f"{self._source} cannot be read ({reason})") from error

    def _sampled(self, container: av.container.InputContainer) -> Iterator[VideoFrame]:
        first, due, index = None, 0.0, 0
        for number, frame in enumerate(container.decode(video=0)):
            stamp = time.monotonic() if frame.time is None else frame.time
            first = stamp if first is None else first
            seconds = stamp - first
            if seconds < due - 1e-3:
                continue
            due = (math.floor(seconds / self._interval + 1e-3) + 1) * self._interval
            image = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            yield VideoFrame(image, seconds, number, index)
            index += 1
