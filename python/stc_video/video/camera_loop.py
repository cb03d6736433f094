# SPDX-License-Identifier: Apache-2.0
"""Many cameras into one call: whatever has arrived, within a stated wait."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType

from stc_video.checks import check_between
from stc_video.video.errors import VideoWarning
from stc_video.video.source import VideoFrame

_LOOK = 0.2  # seconds between looks at signals, whose handlers may have to end the iteration


class CameraLoop:
    """Iterates over the newest frames of many sources, those that are there in one step.

    Each source is read in a thread of its own. A step begins with the first frame that arrives and
    waits a little for those of other cameras, so that one call of the tower encodes them together.
    A frame that nobody took before its camera's next one is passed over and counted::

        sources = {name: open_video(f"rtsp://{name}/stream", fps=2) for name in names}
        with CameraLoop(sources) as cameras:
            for frames in cameras:
                inputs = model.pixels([frame.image for frame in frames.values()])
                with cacher.streams(list(frames)):
                    tokens = model.encode(inputs)

    Parameters
    ----------
    sources
        Frames of each camera by its name, such as what `open_video` returns. Only the camera's
        thread iterates over them.
    wait
        Seconds that a frame may wait for those of other cameras.

    Attributes
    ----------
    lost : dict of str to int
        Frames of each camera that were passed over.
    errors : dict of str to Exception
        What ended a camera before its time, which a `VideoWarning` says; the others go on.

    Raises
    ------
    ValueError
        If there is no source, or `wait` is not between 0 and 10.
    """

    def __init__(self, sources: Mapping[str, Iterable[VideoFrame]], *, wait: float = 0.02) -> None:
        if not sources:
            raise ValueError("CameraLoop: sources must name at least one camera, got none")
        check_between("CameraLoop: wait", wait, 0.0, 10.0)
        self.lost = dict.fromkeys(sources, 0)
        self.errors: dict[str, Exception] = {}
        self._wait = wait
        self._changed = threading.Condition()
        self._newest: dict[str, VideoFrame] = {}
        self._is_closed = False
        self._threads = {
            name: threading.Thread(target=self._read, args=(name, source), name=name, daemon=True)
            for name, source in sources.items()
        }

    def __iter__(self) -> Iterator[dict[str, VideoFrame]]:
        """Yield frames by the name of their camera, until every source has ended.

        Yields
        ------
        dict of str to VideoFrame
            At least one frame, and of each camera at most one; in the order of the sources.
        """
        for thread in list(self._threads.values()):
            thread.start()
        told: set[str] = set()
        while True:
            frames = self._step()
            for name in self.errors.keys() - told:
                told.add(name)
                warnings.warn(f"{name}: {self.errors[name]}", VideoWarning, stacklevel=2)
            if not frames:
                return
            yield {name: frames[name] for name in self.lost if name in frames}

    def close(self) -> None:
        """End the iteration. A thread ends with the next frame of its source, or its timeout."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def __enter__(self) -> CameraLoop:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _step(self) -> dict[str, VideoFrame]:
        """Take what is there at the end of the wait; nothing when all is over."""
        with self._changed:
            while not self._newest and self._threads and not self._is_closed:
                self._changed.wait(_LOOK)
            deadline = time.monotonic() + self._wait
            while self._threads.keys() - self._newest.keys() and not self._is_closed:
                if (left := deadline - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            frames, self._newest = self._newest, {}
            return {} if self._is_closed else frames

    def _read(self, name: str, source: Iterable[VideoFrame]) -> None:
        try:
            for frame in source:
                with self._changed:
                    if self._is_closed:
                        break
                    self.lost[name] += name in self._newest
                    self._newest[name] = frame
                    self._changed.notify_all()
        except Exception as error:  # for whoever looks after the cameras
            self.errors[name] = error
        finally:
            with self._changed:
                del self._threads[name]
                self._changed.notify_all()
