# SPDX-License-Identifier: Apache-2.0
"""The dense pass through the transformer blocks.

Shapes: F frames, N tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from stc_video.towers.block import Block


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
