# SPDX-License-Identifier: Apache-2.0
"""One cached layer of STC-Cacher.

Shapes: F frames, N tokens, C channels, K tokens encoded in a cached frame.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from stc_kernels import gather_rows, scatter_residual, scatter_rows_
from stc_video.towers.block import Block
from stc_video.towers.fused import add_and_normalise


class StcReference(NamedTuple):
    """The reference of one layer, left by the last dense frame: (N, C), or (F, N, C) per frame."""

    compared: Tensor
    reused: Tensor
    update: Tensor


class StcLayer(NamedTuple):
    """The output of a cached layer of ``stc``, and the selection behind it."""

    output: Tensor
    indices: Tensor
    similarity: Tensor


def stc_layer(
    block: Block,
    x: Tensor,
    reference: StcReference,
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
    reference
        What the last dense frame left; not written to.
    select
        Chooses the tokens to re-encode: (F, N, C) fresh and (N, C) or (F, N, C) cached projections
        to (F, K) int32 indices and (F, N) similarities.
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
    indices, similarity = select(fresh, reference.compared)
    rows = gather_rows(normed, indices)
    stale = reference.reused.expand_as(x).clone()
    scatter_rows_(stale, indices, reuse(rows, indices))
    key, value = (fresh, stale) if by_keys else (stale, fresh)
    attention = block.attention(block.project_query(rows, indices), key, value, mask, indices)
    # The MLP needs the selected rows only, so only they are normalised.
    _, middle = add_and_normalise(gather_rows(x, indices), attention, block.norm2)
    update = attention + block.mlp_branch(middle)
    output = scatter_residual(x, reference.update, indices, update)
    return StcLayer(output, indices, similarity)
