# SPDX-License-Identifier: Apache-2.0
"""A guard against being slower than the dense tower.

Fewer operations are not always less time: a tiny tower, or one on a GPU without graphs, may spend
more on the bookkeeping than it saves. What ``warmup`` measures decides which cached frames pay.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timings:
    """Times of frames on this machine, in seconds for one call.

    Attributes
    ----------
    dense
        A dense frame.
    cached
        A cached frame, by the number of tokens that it encodes.
    """

    dense: float
    cached: dict[int, float]

    def __post_init__(self) -> None:
        """Check every value."""
        if not self.dense > 0.0 or not self.cached or not all(t > 0 for t in self.cached.values()):
            raise ValueError(
                "Timings: times must be above 0, with at least one of a cached frame, "
                f"got {self.dense} and {self.cached}"
            )

    def ratio(self, tokens: int) -> float:
        """Time of a cached frame as a fraction of a dense one's.

        What was not measured counts as the next larger number that was; beyond the largest, 1.
        """
        larger = [count for count in self.cached if count >= tokens]
        return self.cached[min(larger)] / self.dense if larger else 1.0

    def pays(self, tokens: int) -> bool:
        """Whether a cached frame of so many tokens is faster than a dense one."""
        return self.ratio(tokens) < 1.0

    @property
    def never_pays(self) -> bool:
        """Whether every cached frame that was measured is slower than a dense one."""
        return not any(self.pays(tokens) for tokens in self.cached)

    def describe(self, tokens: int) -> str:
        """Say in words why a frame is dense."""
        return (
            f"a cached frame of {tokens} tokens takes {self.ratio(tokens):.2f} of a dense one's "
            "time here"
        )


def fastest(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the shortest of some times of a call, after one that warms up."""
    times = []
    for _ in range(repeats + 1):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
