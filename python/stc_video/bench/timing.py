# SPDX-License-Identifier: Apache-2.0
"""Times of calls that take turns, and what is read off them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

#: rounds that are not counted
WARM_UP = 2
#: rounds that are counted, however long they take
LEAST = 3
#: more than the L2 cache of any GPU
_FLUSH_BYTES = 512 << 20
_RESAMPLES = 2000


class Stopwatch:
    """Takes the time of single calls, each on a device that is idle and a cold L2 cache.

    On CUDA it is the time between two events around the call, with what the host needs to launch
    it. What the L2 cache held of weights and states is overwritten before.

    Parameters
    ----------
    device
        Where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flush: Tensor | None = None
        if device.type == "cuda":
            self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device=device)

    def seconds(self, call: Callable[[], object]) -> float:
        """Return how long a call takes."""
        if self._flush is None:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        torch.cuda.synchronize(self._device)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3


def alternate(
    calls: Mapping[str, Callable[[int], object]],
    device: torch.device,
    rounds: int,
    *,
    seconds: float | None = None,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Take the times of calls that take turns, so that drift of the machine hits them all.

    Parameters
    ----------
    calls
        By name; each is given the number of the round.
    device
        Where the work runs.
    rounds
        How often each is timed, after some rounds that warm up.
    seconds
        End earlier, after so many seconds.
    on_round
        Is called after each round.

    Returns
    -------
    dict of list of float
        Seconds, by name; numbers at one place of two lists are of the same round.
    """
    stopwatch = Stopwatch(device)
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    started = time.monotonic()
    for number in range(WARM_UP + rounds):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            took = stopwatch.seconds(partial(calls[name], number))
            if number >= WARM_UP:
                times[name].append(took)
        on_round()
        is_over = seconds is not None and time.monotonic() - started > seconds
        if is_over and number + 1 >= WARM_UP + LEAST:
            break
    return times


@dataclass(frozen=True)
class Spread:
    """Median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Read them off some values."""
        points = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
        return cls(*torch.tensor(values, dtype=torch.float64).quantile(points).tolist())


@dataclass(frozen=True)
class Ratio:
    """A ratio of times with its 95 % confidence interval."""

    median: float
    low: float
    high: float
    spread: Spread


def compare(times: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Compare times with those of a baseline in the same rounds.

    Parameters
    ----------
    times, baseline
        Of the same rounds, at the same places.

    Returns
    -------
    Ratio
        The median of the ratios of neighbours, and the interval that 95 % of the medians fall into
        when the rounds are drawn anew with replacement (percentile bootstrap).
    """
    ratios = torch.tensor(times, dtype=torch.float64) / torch.tensor(baseline, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(ratios), (_RESAMPLES, len(ratios)), generator=generator)
    medians = ratios[drawn].quantile(0.5, dim=1)
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = medians.quantile(ends).tolist()
    return Ratio(float(ratios.quantile(0.5)), low, high, Spread.of(ratios.tolist()))


@dataclass
class PeakMemory:
    """The most memory that was allocated within a block, above what was there before."""

    nbytes: int | None = field(default=None)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak of a block on a CUDA device; None elsewhere, where nothing tells it."""
    peak = PeakMemory()
    if device.type != "cuda":
        yield peak
        return
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    torch.cuda.synchronize(device)
    peak.nbytes = torch.cuda.max_memory_allocated(device) - before
