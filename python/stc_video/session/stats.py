# SPDX-License-Identifier: Apache-2.0
"""Times of the stages of a session, and totals."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from stc_video.cacher import CacheStats

if TYPE_CHECKING:
    from stc_video.session.intake import Intake
    from stc_video.session.parts import SessionParts

STAGES = ("decode", "encode", "prune", "prefill", "retrieve", "generate")
_REMEMBERED = 1024


@dataclass(frozen=True)
class StageStats:
    """Times of one stage.

    Attributes
    ----------
    count
        How often it ran.
    seconds
        In total.
    median, p99
        Of the last 1024 times, in seconds; 0 if there was none.
    """

    count: int
    seconds: float
    median: float
    p99: float


@dataclass(frozen=True)
class SessionStats:
    """Totals of a session, and the bytes that it holds.

    Attributes
    ----------
    frames
        Frames pushed.
    waiting
        How many of them wait for their prefill chunk to be full.
    refused
        Frames that the memory did not take, because it or the disk under it was full, or failed.
    evicted
        Frames that the memory has forgotten since, or merged into others.
    times_back
        How often a frame's timestamp was before that of the frame pushed before it.
    tokens_seen, tokens_kept
        Tokens of all frames before and after pruning.
    memory_tokens
        Tokens that the memory holds.
    bytes
        Bytes of each of the memory's stores, of the cacher's and of the pruner's state.
    stages
        Times by stage: ``decode`` (a frame to the tower's input), ``encode`` (tower to pooling),
        ``prune``, ``prefill``, ``retrieve`` (the question through the model), ``generate``.
    cache
        What the cacher did for this stream; None without one.
    """

    frames: int
    waiting: int
    refused: int
    evicted: int
    times_back: int
    tokens_seen: int
    tokens_kept: int
    memory_tokens: int
    bytes: dict[str, int]
    stages: dict[str, StageStats]
    cache: CacheStats | None

    def __str__(self) -> str:
        """Sum it up in a few lines; ``repr`` has every field."""
        ran = {name: stage for name, stage in self.stages.items() if stage.count}
        times = ", ".join(f"{name} {1e3 * one.median:.1f} ms" for name, one in ran.items())
        held = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.bytes.items())
        waiting = f" ({self.waiting} waiting)" if self.waiting else ""
        lines = [
            f"{self.frames} frames{waiting}: {self.tokens_kept} of {self.tokens_seen} tokens kept, "
            f"{self.memory_tokens} in memory",
            f"median times: {times or 'none'}",
            f"memory: {held}",
        ]
        if self.cache is not None:
            lines += [f"cacher: {line}" for line in str(self.cache).splitlines()[:3]]
        return "\n".join(lines)

    @classmethod
    def of(cls, parts: SessionParts, intake: Intake) -> SessionStats:
        """Collect the totals of a session's parts; the caller holds the memory's lock."""
        memory, cacher = parts.memory, parts.handle.cacher
        cache = None if cacher is None else cacher.stats().streams.get(parts.stream)
        state = {
            "cacher": 0 if cache is None else cache.state_bytes,
            "pruner": parts.handle.pruner.state_bytes,
        }
        return cls(
            frames=intake.frames,
            waiting=len(intake.waiting),
            refused=intake.refused,
            evicted=getattr(memory, "evicted", 0),
            times_back=intake.times_back,
            tokens_seen=intake.tokens_seen,
            tokens_kept=intake.tokens_kept,
            memory_tokens=memory.tokens,
            bytes=memory.nbytes() | state,
            stages=parts.timer.stats(),
            cache=cache,
        )


@dataclass
class _Times:
    count: int = 0
    seconds: float = 0.0
    last: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class StageTimer:
    """Measures stages; on a GPU it waits for the stage's work to be done.

    Parameters
    ----------
    device
        Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._times = {stage: _Times() for stage in STAGES}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure a block that is successful."""
        begin = time.perf_counter()
        yield
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        took = time.perf_counter() - begin
        times = self._times[stage]
        times.count += 1
        times.seconds += took
        times.last.append(took)

    def last(self, stage: str) -> float:
        """Return the last time of a stage in seconds, 0 if there is none."""
        times = self._times[stage].last
        return times[-1] if times else 0.0

    def stats(self) -> dict[str, StageStats]:
        """Return the times of all stages."""
        return {stage: _summary(times) for stage, times in self._times.items()}


def _summary(times: _Times) -> StageStats:
    ordered = sorted(times.last)
    if not ordered:
        return StageStats(0, 0.0, 0.0, 0.0)
    # The nearest rank: a time that was measured.
    median, p99 = (ordered[math.ceil(q * len(ordered)) - 1] for q in (0.5, 0.99))
    return StageStats(times.count, times.seconds, median, p99)
