# SPDX-License-Identifier: Apache-2.0
"""The interface of a policy and what the two share: dense frames, operations, records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stc_video.cacher.dense import FrameBatch, dense_layers
from stc_video.cacher.graphs import GraphCache, PlainRecorder, recorder_for
from stc_video.cacher.guard import Timings
from stc_video.cacher.stats import DENSE, FrameRecord, Operations
from stc_video.cacher.streams import Layout, Stream, StreamPool
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower

#: outputs of the layers that were asked for, by layer number, each (F, N, C)
Outputs = dict[int, Tensor]

NONFINITE = "NaN or Inf in the input: encoded densely and not cached"


class Policy(Protocol):
    """A policy, as the cacher calls it."""

    graphs: GraphCache | None
    timings: Timings | None

    def encode(
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode the next frames of S streams, those of a stream one after another.

        The records are in the order of the rows.
        """
        ...

    def restore(self, stream: Stream) -> None:
        """Move the state of a saved stream into the pool."""
        ...

    def rehearse(self, layout: Layout, batch: FrameBatch) -> Timings:
        """Take the time of dense and of cached frames, one of each of S streams."""
        ...


class PolicyBase:
    """Base of both policies: the tower's geometry, dense frames, and the bookkeeping."""

    #: how often each kind of frame is timed
    REHEARSALS = 3

    def __init__(self, tower: Tower, config: CacheConfig, pool: StreamPool) -> None:
        self.blocks = tower.blocks
        self.pool = pool
        self.graphs: GraphCache | None = None
        self.timings: Timings | None = None
        self.prefix_tokens = tower.prefix_tokens
        self.config = config
        self.operations = [Operations.of(block, block.channels) for block in tower.blocks]

    def place(self, streams: Sequence[Stream], output_layers: frozenset[int]) -> None:
        """Give streams without a state an empty one, with room for the outputs of some layers."""
        raise NotImplementedError

    def restore(self, stream: Stream) -> None:
        """Move the state of a saved stream into the pool."""
        saved, reason = stream.state, stream.restart_reason
        if saved is None:
            return
        stream.state = None
        hidden = getattr(saved, "hidden", {})
        self.place([stream], frozenset(hidden) | {self.last})
        stream.restart_reason = reason
        assert stream.state is not None
        stream.state.copy_(saved)

    def graphs_on(self, device: torch.device) -> GraphCache:
        """Return where passes are recorded, made when it is first needed."""
        if self.graphs is None:
            recorder = recorder_for(device) if self.config.graphs else PlainRecorder()
            self.graphs = GraphCache(recorder, self.config.graph_bytes)
            self.pool.on_discard.append(self.graphs.forget)
        return self.graphs

    def pays(self, tokens: int) -> bool:
        """Whether a cached frame of so many tokens is faster than a dense one, or not measured."""
        return self.timings is None or not self.config.guard or self.timings.pays(tokens)

    def describe_guard(self, tokens: int) -> str:
        """Say why a frame with so many tokens to encode is encoded densely."""
        return self.timings.describe(tokens) if self.timings is not None else ""

    @property
    def is_never_cached(self) -> bool:
        """Whether no cached frame is faster than a dense one, as far as measured."""
        return self.timings is not None and self.config.guard and self.timings.never_pays

    def encode_guarded(
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode frames densely and keep nothing, because nothing else is faster."""
        assert self.timings is not None
        reason = self.describe_guard(min(self.timings.cached))
        records = []
        for stream in streams:
            stream.drop_state()
            for _ in range(len(batch.frames) // len(streams)):
                stream.counters.guarded += 1
                records.append(self.record(stream, DENSE, reason, batch.tokens))
        return self.dense_uncached(batch), records

    @property
    def last(self) -> int:
        """Number of the last layer."""
        return len(self.blocks) - 1

    def dense_operations(self, tokens: int) -> int:
        """Operations of a dense frame."""
        return sum(operations.dense(tokens) for operations in self.operations)

    def dense_uncached(self, batch: FrameBatch) -> Outputs:
        """Encode frames densely and keep nothing."""
        traces = enumerate(dense_layers(self.blocks, batch.frames, batch.mask))
        return {layer: trace.output for layer, trace in traces if layer in batch.output_layers}

    def record(
        self,
        stream: Stream,
        kind: str,
        reason: str,
        tokens: int,
        *,
        cost: float = 1.0,
        encoded: int | None = None,
        changed: int | None = None,
        similarity: Tensor | None = None,
        selected: Sequence[Tensor] = (),
        measured: float | None = None,
        passes: int = 1,
        finite: bool = True,
    ) -> FrameRecord:
        """Count a frame and describe it."""
        record = FrameRecord(
            stream=stream.name,
            index=stream.counters.frames,
            kind=kind,
            reason=reason,
            cost=cost,
            changed=tokens - self.prefix_tokens if changed is None else changed,
            prefix_tokens=self.prefix_tokens,
            tokens=tokens,
            similarity=similarity,
            selected=selected,
            audited=measured is not None,
            measured=measured,
            passes=passes,
            finite=finite,
        )
        stream.counters.nonfinite += not finite
        stream.counters.add(record, tokens if encoded is None else encoded)
        return record


def finite_frames(frames: Tensor) -> list[bool]:
    """Say for each frame (F, N, C) whether it is free of NaN and Inf."""
    # A sum shows any of them, at the price of one pass and one transfer.
    sums = frames.sum(dim=(1, 2), dtype=torch.float32)
    return [bool(value) for value in torch.isfinite(sums).tolist()]
