# SPDX-License-Identifier: Apache-2.0
"""Always the newest frame of a live source: what comes while nobody looks is passed over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

FrameT = TypeVar("FrameT")
_LOOK = 0.2  # seconds between looks at whether to stop, which can be set in a signal handler


class Newest(Generic[FrameT]):
    """Reads frames in a thread of its own and keeps the last one.

    Parameters
    ----------
    frames
        The source; it is read as fast as it delivers, and closed by the thread.

    Attributes
    ----------
    lost
        Whether a frame was passed over since the last one that was taken.
    """

    def __init__(self, frames: Iterator[FrameT]) -> None:
        self._frames = frames
        self._changed = threading.Condition()
        self._newest: FrameT | None = None
        self._overwritten = self.lost = self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._read, name="live video", daemon=True)

    def taken(self, stopped: Callable[[], bool]) -> Iterator[FrameT]:
        """Yield the newest frame, or wait for one, until the end or until stopped.

        Raises
        ------
        Exception
            What the source raised, behind its last frame.
        """
        self._thread.start()
        while True:
            with self._changed:
                while self._newest is None and not self._ended:
                    if stopped():
                        return
                    self._changed.wait(_LOOK)
                frame, self._newest = self._newest, None
                self.lost, self._overwritten = self._overwritten, False
            if frame is None:
                break
            yield frame
        if self._error is not None:
            raise self._error

    def _read(self) -> None:
        try:
            for frame in self._frames:
                with self._changed:
                    self._overwritten |= self._newest is not None
                    self._newest = frame
                    self._changed.notify()
        except Exception as error:  # for whoever takes the frames
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify()
