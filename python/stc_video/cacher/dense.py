# SPDX-License-Identifier: Apache-2.0
"""Frames on their way through the transformer blocks, and the dense pass.

Shapes: F frames, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from stc_video.towers.block import Block


@dataclass(frozen=True)
class FrameBatch:
    """Frames that are encoded together, and the outputs that are asked for.

    Attributes
    ----------
    frames
        (F, N, C) input of the first layer, those of a stream one after another.
    mask
        None or (F, 1, 1, N), added to the scores of the attention.
    output_layers
        Numbers of the layers whose output is returned.
    """

    frames: Tensor
    mask: Tensor | None
    output_layers: frozenset[int]

    def __getitem__(self, rows: int | slice | list[int]) -> FrameBatch:
        """Return some of the frames; one of them as a batch of its own."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1)
        mask = self.mask
        if mask is not None:  # one for all frames, or one for each
            mask = mask.expand(len(self.frames), -1, -1, -1)[rows]
        return self.like(self.frames[rows], mask)

    def like(self, frames: Tensor, mask: Tensor | None = None) -> FrameBatch:
        """Return other frames of which the same is asked."""
        return FrameBatch(frames, mask, self.output_layers)

    @property
    def tokens(self) -> int:
        """N, tokens of a frame."""
        return self.frames.shape[1]


class LayerTrace(NamedTuple):
    """The results of one layer for all tokens, each (F, N, C)."""

    normed: Tensor
    key: Tensor
    value: Tensor
    update: Tensor
    output: Tensor


def dense_layers(blocks: Sequence[Block], x: Tensor, mask: Tensor | None) -> Iterator[LayerTrace]:
    """Run the blocks for all tokens, yielding what each one computed."""
    for block in blocks:
        normed = block.norm1(x)
        query, key, value = block.project(normed)
        attention = block.attention(query, key, value, mask)
        mlp = block.feed_forward(middle := x + attention)
        x = middle + mlp
        yield LayerTrace(normed, key, value, attention + mlp, x)
