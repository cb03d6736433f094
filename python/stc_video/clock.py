# SPDX-License-Identifier: Apache-2.0
"""Wall-clock time of work that may still be queued on a device."""

from __future__ import annotations

import time

import torch


class Clock:
    """Wall-clock laps; on CUDA the queue is drained first.

    Parameters
    ----------
    device
        Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        """Return the seconds since the last call."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed
