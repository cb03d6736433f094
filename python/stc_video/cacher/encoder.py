# SPDX-License-Identifier: Apache-2.0
"""The passes through the transformer blocks: dense, and the cached ones of the two policies.

Shapes: F frames, N tokens, C channels, K tokens encoded in a cached frame. None of these passes
decides anything; which tokens, and when, is in ``policies``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from stc_kernels import gather_rows, scatter_residual, scatter_rows_
from stc_video.cacher.stream_state import MotionState, StcState
from stc_video.towers.block import Block


class LayerTrace(NamedTuple):
    """What one layer computed for all tokens, each (F, N, C)."""

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
        attention = block.attend(query, key, value, mask)
        mlp = block.feed_forward(middle := x + attention)
        x = middle + mlp
        yield LayerTrace(normed, key, value, attention + mlp, x)


def motion_layers(
    blocks: Sequence[Block],
    x: Tensor,
    indices: Tensor,
    state: MotionState,
    mask: Tensor | None,
    layers: range,
) -> Tensor:
    """Run some layers for the chosen rows only.

    Each layer writes the rows' new keys and values into the stream's and attends to all of them.

    Parameters
    ----------
    blocks
        All blocks of the tower.
    x
        (1, K, C) rows of the input of the first of the layers.
    indices
        (1, K) int32, the places of those rows.
    state
        The stream's state; its keys, values and hidden states are written to.
    mask
        Key mask, (1, 1, 1, N), or None.
    layers
        Numbers of the layers to run.

    Returns
    -------
    Tensor
        (1, K, C) rows of the output of the last of the layers.
    """
    for layer in layers:
        block = blocks[layer]
        normed = block.norm1(x)
        keys, values = state.keys[layer, None], state.values[layer, None]
        query, key, value = block.project(normed, indices)
        scatter_rows_(keys, indices, key)
        scatter_rows_(values, indices, value)
        x = x + block.attend(query, keys, values, mask, indices)
        x = x + block.feed_forward(x)
        if layer in state.hidden:
            scatter_rows_(state.hidden[layer][None], indices, x)
    return x


class StcLayer(NamedTuple):
    """What a cached layer of ``stc`` computed: its output and what it selected by."""

    output: Tensor
    indices: Tensor
    similarity: Tensor


def stc_layer(
    block: Block,
    x: Tensor,
    state: StcState,
    layer: int,
    *,
    select: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    by_keys: bool,
    mask: Tensor | None,
) -> StcLayer:
    """Run one cached layer of STC-Cacher.

    Parameters
    ----------
    block
        The layer.
    x
        (F, N, C) residual stream.
    state
        What the last dense frame left; not written to.
    layer
        Number of the layer.
    select
        Chooses the tokens to re-encode: (F, N, C) fresh and (N, C) cached projections to (F, K)
        int32 indices and (F, N) similarities.
    by_keys
        Compare keys (values stay stale for unselected tokens), else the other way round.
    mask
        Key mask, (F, 1, 1, N), or None.

    Returns
    -------
    StcLayer
        Output (F, N, C), indices (F, K) int32, similarity (F, N) float32.
    """
    normed = block.norm1(x)
    compare, reuse = block.project_key, block.project_value
    if not by_keys:
        compare, reuse = reuse, compare
    fresh = compare(normed)
    indices, similarity = select(fresh, state.compared[layer])
    rows = gather_rows(normed, indices)
    stale = state.reused[layer].expand_as(x).clone()
    scatter_rows_(stale, indices, reuse(rows, indices))
    key, value = (fresh, stale) if by_keys else (stale, fresh)
    attention = block.attend(block.project_query(rows, indices), key, value, mask, indices)
    # The MLP needs the selected rows only, so only they are normalised.
    update = attention + block.feed_forward(gather_rows(x, indices) + attention)
    output = scatter_residual(x, state.update[layer], indices, update)
    return StcLayer(output, indices, similarity)
