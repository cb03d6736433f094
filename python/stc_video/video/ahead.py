# SPDX-License-Identifier: Apache-2.0
"""A stage of a pipeline in a thread of its own, a bounded number of items ahead."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import Generic, TypeVar

from stc_video.checks import check_count

T = TypeVar("T")
_LOOK = 0.2  # seconds between looks at signals, whose handlers may have to end the iteration


def ahead(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """Iterate in a thread of its own, so that the next items are made while one is worked on.

    Decoding, resizing and torch let other threads run meanwhile. Stages are put together by
    nesting. Close it before what it iterates over::

        with open_video("street.mp4") as video, closing(ahead(video)) as frames:
            for frame in frames:
                session.push(frame.image, frame.time)

    Not for live sources, which keep their newest frame by themselves: what waits here is older.

    Parameters
    ----------
    items
        What to iterate over; only the thread does, from the first item that is wanted on.
    depth
        How many items may be ready and wait; the thread stops working until one is taken.

    Yields
    ------
    T
        The items in their order, unchanged.

    Raises
    ------
    Exception
        What the iteration raises, behind the items before it.
    ValueError
        If `depth` is less than 1.
    """
    check_count("ahead: depth", depth, 1)
    stage = _Stage(items, depth)
    try:
        while True:
            item = stage.take()
            if item is None:
                return
            yield item[0]
    finally:
        stage.stop()


class _Stage(threading.Thread, Generic[T]):
    def __init__(self, items: Iterable[T], depth: int) -> None:
        super().__init__(name="ahead", daemon=True)
        self._items, self._depth = items, depth
        self._ready: deque[tuple[T]] = deque()
        self._changed = threading.Condition()
        self._is_over = self._is_stopped = False
        self._error: BaseException | None = None
        self.start()

    def take(self) -> tuple[T] | None:
        """The next item, as a tuple; None behind the last."""
        with self._changed:
            while not self._ready and not self._is_over:
                self._changed.wait(_LOOK)
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
        if self._error is not None:
            raise self._error
        return None

    def stop(self) -> None:
        """End the iteration; whoever closes the source must not meet a thread that reads it."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()
        self.join()

    def run(self) -> None:
        iterator = iter(self._items)
        try:
            for item in iterator:
                with self._changed:
                    self._ready.append((item,))
                    self._changed.notify_all()
                    while len(self._ready) >= self._depth and not self._is_stopped:
                        self._changed.wait()
                    if self._is_stopped:
                        break
        except BaseException as error:  # for whoever takes the items
            self._error = error
        finally:
            if isinstance(iterator, Generator):
                iterator.close()  # stages before this one end in the thread that runs them
            with self._changed:
                self._is_over = True
                self._changed.notify_all()
