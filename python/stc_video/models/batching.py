# SPDX-License-Identifier: Apache-2.0
"""One call of the tower for all streams that are waiting for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(eq=False)
class TowerJob:
    """Frames of one stream on their way through the tower.

    Attributes
    ----------
    stream
        Name of the stream.
    pixels
        (F, 3, h, w) its next frames.
    features
        (F, N, D) what came out; None until then.
    error
        What went wrong instead.
    """

    stream: str
    pixels: Tensor
    features: Tensor | None = None
    error: Exception | None = None


class TowerBatcher:
    """Collects the frames that several threads want encoded and encodes them together.

    The first thread to get hold of the tower takes everything that waits; what arrives meanwhile
    is the next batch. A thread alone never waits for others.

    Parameters
    ----------
    run
        Fills in the features of some jobs of different streams.
    lock
        Held by the thread that runs the tower; whoever holds it already may call this.

    Attributes
    ----------
    waiting
        The jobs that no call of the tower has taken yet.
    """

    def __init__(
        self, run: Callable[[Sequence[TowerJob]], None], lock: AbstractContextManager[Any]
    ) -> None:
        self._run = run
        self._lock = lock
        # Threads add to it whenever they like; only the one with the lock takes anything out.
        self.waiting: list[TowerJob] = []

    def __call__(self, stream: str, pixels: Tensor) -> Tensor:
        """Encode frames, possibly together with those of other threads.

        Parameters
        ----------
        stream
            Name of the stream.
        pixels
            (F, 3, h, w).

        Returns
        -------
        Tensor
            (F, N, D).
        """
        job = TowerJob(stream, pixels)
        self.waiting.append(job)
        with self._lock:
            while job.features is None and job.error is None:
                self._run_or_blame(self._next_batch())
        if job.error is not None:
            raise job.error
        assert job.features is not None
        return job.features

    def _next_batch(self) -> list[TowerJob]:
        """Take the waiting jobs, one per stream and of one shape."""
        waiting = list(self.waiting)
        first: dict[str, TowerJob] = {}
        for job in waiting:
            if job.pixels.shape == waiting[0].pixels.shape:
                first.setdefault(job.stream, job)
        for job in first.values():
            self.waiting.remove(job)
        return list(first.values())

    def _run_or_blame(self, batch: list[TowerJob]) -> None:
        """Run a batch; where it fails, find out whose frames are at fault."""
        try:
            self._run(batch)
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
                return
            for job in batch:
                self._run_or_blame([job])
