# SPDX-License-Identifier: Apache-2.0
"""One call of the tower for all streams that are waiting for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

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

    Attributes
    ----------
    waiting
        The jobs that no call of the tower has taken yet.
    """

    def __init__(self, run: Callable[[Sequence[TowerJob]], None]) -> None:
        self._run = run
        self.waiting: list[TowerJob] = []
        self._list_lock = threading.Lock()
        self._tower_lock = threading.Lock()

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
        with self._list_lock:
            self.waiting.append(job)
        with self._tower_lock:
            while job.features is None and job.error is None:
                self._run_or_blame(self._next_batch())
        if job.error is not None:
            raise job.error
        assert job.features is not None
        return job.features

    def _next_batch(self) -> list[TowerJob]:
        """Take the waiting jobs, one per stream and of one shape."""
        with self._list_lock:
            shape = self.waiting[0].pixels.shape
            first: dict[str, TowerJob] = {}
            for job in self.waiting:
                if job.pixels.shape == shape:
                    first.setdefault(job.stream, job)
            batch = list(first.values())
            self.waiting = [job for job in self.waiting if job not in batch]
        return batch

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
