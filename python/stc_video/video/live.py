# SPDX-License-Identifier: Apache-2.0
"""Frames in their own time: of a recording as if it were live, or of a live source."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from stc_video.video.location import is_camera
from stc_video.video.source import VideoFrame, VideoSource, open_video
from stc_video.video.timeline import FILE_GAP, SourceStats


class LiveVideo:
    """Iterates over a video's frames, each not before its time.

    A frame that comes more than one interval too late, because whoever iterates was busy, is
    skipped and counted. A gap in a recording is not waited for longer than 10 seconds.

    Parameters
    ----------
    source
        As for `open_video`.
    fps
        Frames per second.
    stop
        Ends the iteration when set.
    fast
        A recording's frames as fast as they are asked for, none skipped.

    Attributes
    ----------
    clock : callable
        Seconds by which frames of a recording have their time; `time.monotonic`.

    Raises
    ------
    VideoError
        When iterated: if the source cannot be read, or breaks off.
    ValueError
        If ``fps`` is no positive number, or ``fast`` is asked of a live source; of an address that
        shows only when iterated.
    """

    def __init__(self, source: str, fps: float, stop: threading.Event, *, fast: bool) -> None:
        if not (fps > 0 and math.isfinite(fps)):
            raise ValueError(f"--fps must be a positive number, got {fps:g}")
        self._source, self._fps = source, fps
        self._stop, self._fast = stop, fast
        self.clock: Callable[[], float] = time.monotonic
        self._late = 0
        self._video: VideoSource | None = None
        if is_camera(source):
            self._check_fast(source)

    @property
    def is_live(self) -> bool:
        """Whether the source is a live one, known from the first frame on."""
        return self._video is not None and self._video.is_live

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    @property
    def skipped(self) -> int:
        """Number of frames that came too late."""
        return self.stats().skipped

    def stats(self) -> SourceStats:
        """Return what was read so far, and what its timestamps were like."""
        if self._video is None:
            return SourceStats()
        stats = self._video.stats()
        return replace(stats, skipped=stats.skipped + self._late)

    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield frames until the end, or until stopped."""
        with open_video(self._source, fps=self._fps) as video:
            self._video = video
            video.stopped = self._stop.is_set
            if video.is_live:
                self._check_fast(video.shown)
            frames = video.frames()
            yield from frames if self._fast or video.is_live else self._paced(frames)

    def _check_fast(self, shown: str) -> None:
        if self._fast:
            raise ValueError(f"--fast is for recordings, got the live source {shown}")

    def _paced(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        start, interval = None, 1.0 / self._fps
        while True:
            asked = self.clock()
            frame = next(frames, None)
            if frame is None:
                return
            here = self.clock()
            start = here - frame.time if start is None else start
            due = start + frame.time
            if asked - due > interval:  # whoever iterates was busy
                self._late += 1
                continue
            # A source that is slow, or a long gap, moves all that follows.
            due = min(max(due, here - interval), here + FILE_GAP)
            start = due - frame.time
            if self._stop.wait(max(0.0, due - here)):
                return
            yield frame
