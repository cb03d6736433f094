# SPDX-License-Identifier: Apache-2.0
"""Frames on their way from the network to the model."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class QueuedFrame:
    """A picture that waits.

    Attributes
    ----------
    data
        The file.
    id
        The sender's number of it.
    time
        When it was taken, in seconds.
    arrived
        When it came, by ``time.perf_counter``.
    reply
        Tells the sender what became of it; called in any thread.
    """

    data: bytes
    id: int
    time: float
    arrived: float
    reply: Callable[[dict[str, Any]], None]


class FrameQueue:
    """A bounded queue in which the newest frames push the oldest out.

    Parameters
    ----------
    capacity
        How many frames may wait.
    """

    def __init__(self, capacity: int) -> None:
        self._frames: deque[QueuedFrame] = deque()
        self._capacity = capacity
        self._changed = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: QueuedFrame) -> QueuedFrame | None:
        """Append a frame; return the one that had to go for it, the frame itself if closed."""
        with self._changed:
            if self._closed:
                return frame
            out = self._frames.popleft() if len(self._frames) == self._capacity else None
            self._frames.append(frame)
            self._changed.notify()
            return out

    def get(self) -> QueuedFrame | None:
        """Wait for the oldest frame; None when the queue is closed and empty."""
        with self._changed:
            while not self._frames and not self._closed:
                self._changed.wait()
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        """Take no more frames; what waits is still handed out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
