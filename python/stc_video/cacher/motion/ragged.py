# SPDX-License-Identifier: Apache-2.0
"""The pass of the ``motion`` policy: any number of rows of any number of streams, concatenated.

Matrix products, norms and activations run once for the rows of all streams, whatever each one's
number; only attention and the writes to its state go stream by stream. Nothing is padded, so that
the operations are those of the rows, and a frame of which all rows are encoded is a dense frame.

Shapes: N tokens, C channels, K rows of one stream, R rows of all streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stc_video.cacher.motion.segments import Segment
from stc_video.towers.block import Block
from stc_video.towers.fused import add_and_normalise


@dataclass(frozen=True)
class RaggedEncoder:
    """Runs all segments in one pass.

    Attributes
    ----------
    blocks
        All blocks of the tower.
    head
        Number of the first layer that may run for all tokens (``with_tail``).
    """

    blocks: Sequence[Block]
    head: int

    def encode(self, segments: Sequence[Segment]) -> None:
        """Write what becomes of the segments' rows into their states; at least one segment."""
        layers = range(len(self.blocks))
        for segment in segments:
            segment.put_reference()
        x = _concatenated([segment.x for segment in segments])
        blocks = [block.in_short() for block in self.blocks] if x.is_cpu else self.blocks
        x = run_layers(blocks, x, segments, layers[: self.head])
        if self.head < len(self.blocks):
            x, segments = _widen(x, segments)
            x = run_layers(blocks, x, segments, layers[self.head :])
        for segment, rows in zip(segments, _by_segment(x, segments), strict=True):
            segment.put(segment.state.output[None], rows)


def _widen(x: Tensor, segments: Sequence[Segment]) -> tuple[Tensor, list[Segment]]:
    """Keep what the first layers gave, and turn segments with a tail into whole frames."""
    rows, widened = [], []
    for segment, part in zip(segments, _by_segment(x, segments), strict=True):
        whole = segment.state.tail_input
        assert whole is not None
        segment.put(whole[None], part)
        is_wide = segment.with_tail and segment.indices is not None
        rows.append(whole[None] if is_wide else part)
        widened.append(replace(segment, indices=None) if is_wide else segment)
    return _concatenated(rows), widened


def run_layers(
    blocks: Sequence[Block], x: Tensor, segments: Sequence[Segment], layers: range
) -> Tensor:
    """Run concatenated rows (1, R, C) through some layers; what these keep goes into the states."""
    indices = _indices(segments, x.device)
    normed = None
    for layer in layers:
        block = blocks[layer]
        normed = block.norm1(x) if normed is None else normed
        attention = _attention(block, normed, segments, indices, layer)
        x, normed = add_and_normalise(x, attention, block.norm2)
        following = blocks[layer + 1].norm1 if layer + 1 in layers else None
        x, normed = add_and_normalise(x, block.mlp_branch(normed), following)
        for segment, rows in zip(segments, _by_segment(x, segments), strict=True):
            if layer in segment.state.hidden:
                segment.put(segment.state.hidden[layer][None], rows)
    return x


def _attention(
    block: Block,
    normed: Tensor,
    segments: Sequence[Segment],
    indices: Tensor | None,
    layer: int,
) -> Tensor:
    """Attention branch (1, R, C); the rows' keys and values go into the states first."""
    mixed = []
    projected = [_by_segment(part, segments) for part in block.project(normed, indices)]
    for segment, query, key, value in zip(segments, *projected, strict=True):
        keys, values = segment.keys[layer], segment.values[layer]
        segment.put(keys, key)
        segment.put(values, value)
        mixed.append(block.attend(query, keys, values, segment.mask, segment.indices))
    return block.attention_branch(_concatenated(mixed))


def _indices(segments: Sequence[Segment], device: torch.device) -> Tensor | None:
    """Indices (1, R) of the concatenated rows in their frames; None for one whole frame."""
    if len(segments) == 1:
        return segments[0].indices
    every = [
        torch.arange(segment.rows, dtype=torch.int32, device=device)[None]
        if segment.indices is None
        else segment.indices
        for segment in segments
    ]
    return torch.cat(every, dim=1)


def _by_segment(x: Tensor, segments: Sequence[Segment]) -> Sequence[Tensor]:
    """Split concatenated rows (1, R, C) into those of each segment."""
    return [x] if len(segments) == 1 else x.split([segment.rows for segment in segments], dim=1)


def _concatenated(rows: Sequence[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(list(rows), dim=1)
