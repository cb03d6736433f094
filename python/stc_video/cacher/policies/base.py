# SPDX-License-Identifier: Apache-2.0
"""What the policies share: dense frames, the counting of operations, the records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from stc_video.cacher.encoder import dense_layers
from stc_video.cacher.stats import FrameRecord, Operations
from stc_video.cacher.stream_state import Stream
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower

#: outputs of the layers that were asked for, by layer number, each (F, N, C)
Outputs = dict[int, Tensor]

NONFINITE = "NaN or Inf in the input: encoded densely and not cached"


class Policy(Protocol):
    """What the handle asks of a policy."""

    def encode(
        self, stream: Stream, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode the next frames (F, N, C) of a stream; ``wanted`` are the layers to return."""
        ...


class PolicyBase:
    """What both policies share: the tower's geometry, dense frames, and the book-keeping."""

    def __init__(self, tower: Tower, config: CacheConfig) -> None:
        self.blocks = tower.blocks
        self.pinned = tower.prefix_tokens
        self.config = config
        self.operations = [Operations.of(block, block.channels) for block in tower.blocks]

    @property
    def last(self) -> int:
        """Number of the last layer."""
        return len(self.blocks) - 1

    def dense_operations(self, tokens: int) -> int:
        """Operations of a dense frame."""
        return sum(operations.dense(tokens) for operations in self.operations)

    def dense_uncached(
        self, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> Outputs:
        """Encode frames densely and keep nothing."""
        traces = enumerate(dense_layers(self.blocks, frames, mask))
        return {layer: trace.output for layer, trace in traces if layer in wanted}

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
    ) -> FrameRecord:
        """Count a frame and describe it."""
        record = FrameRecord(
            stream=stream.name,
            index=stream.counters.frames,
            kind=kind,
            reason=reason,
            cost=cost,
            changed=tokens - self.pinned if changed is None else changed,
            prefix_tokens=self.pinned,
            tokens=tokens,
            similarity=similarity,
            selected=selected,
        )
        stream.counters.add(record, tokens if encoded is None else encoded)
        return record


def finite_frames(frames: Tensor) -> list[bool]:
    """Say for each frame (F, N, C) whether it is free of NaN and Inf."""
    # A sum shows any of them, at the price of one pass and one transfer.
    sums = frames.sum(dim=(1, 2), dtype=torch.float32)
    return [bool(value) for value in torch.isfinite(sums).tolist()]
