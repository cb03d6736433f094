# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU: replays of a graph, with a cold L2 cache, measured by events."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch

#: more than any GPU's L2 cache
_FLUSH_BYTES = 512 * 1024 * 1024


class Timing(NamedTuple):
    """Microseconds of one call: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def graph_of(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """Capture a function after it has compiled what it needs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def time_replay(graph: torch.cuda.CUDAGraph, repeats: int = 50) -> Timing:
    """Time single replays, each after the L2 cache was overwritten."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(repeats)
    ]
    for start, end in pairs:
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    samples = [1000.0 * start.elapsed_time(end) for start, end in pairs]
    deciles = statistics.quantiles(samples, n=10)
    return Timing(statistics.median(samples), deciles[1], deciles[7])


def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a large copy within the device."""
    source = torch.randn(256 * 1024 * 1024, device="cuda")
    target = torch.empty_like(source)
    timing = time_replay(graph_of(lambda: target.copy_(source)), repeats=20)
    return 2e6 * source.nbytes / timing.median


def empty_launch() -> float:
    """Microseconds of a graph with one kernel that does next to nothing."""
    one = torch.zeros(1, device="cuda")
    return time_replay(graph_of(lambda: one.add_(1.0))).median
