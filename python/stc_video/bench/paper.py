# SPDX-License-Identifier: Apache-2.0
"""STC-Cacher's forward (arXiv 2512.00891) in plain PyTorch: the baseline, written from the paper.

It uses none of our operators and nothing of the cacher, only the parts of a block. What the
authors' code does beyond the mathematics is left out, so that it is no slower than it has to be:
keys are projected once, and the second norm runs on the selected rows alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

from torch import Tensor
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from stc_video.towers.block import Block


class Reference(NamedTuple):
    """Tensors of the last dense frame in a layer, each (S, N, C)."""

    key: Tensor
    value: Tensor
    attention: Tensor
    mlp: Tensor


@dataclass
class PublishedLayer:
    """One layer: dense while it has no reference, which makes that frame the reference.

    Attributes
    ----------
    block
        The layer's parts.
    rows
        How many tokens a cached frame re-encodes, K.
    pinned
        Class token and registers, which are always among them. The authors' code has no such
        exception; it costs nothing, and selects what our `stc` policy selects.
    reference
        What the dense frame left.
    """

    block: Block
    rows: int
    pinned: int
    reference: Reference | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Encode the residual stream (S, N, C) of the next frame of each stream."""
        return self._dense(x) if self.reference is None else self._cached(x, self.reference)

    @property
    def nbytes(self) -> int:
        """Size of the reference in bytes."""
        return sum(tensor.nbytes for tensor in self.reference or ())

    def _dense(self, x: Tensor) -> Tensor:
        block = self.block
        normed = block.norm1(x)
        key, value = block.key(normed), block.value(normed)
        attention = attend(block, block.query(normed), key, value)
        middle = x + attention
        mlp = _feed_forward(block, middle)
        self.reference = Reference(key, value, attention, mlp)
        return middle + mlp

    def _cached(self, x: Tensor, reference: Reference) -> Tensor:
        block = self.block
        normed = block.norm1(x)
        key = block.key(normed)
        similarity = cosine_similarity(key, reference.key, dim=-1)
        similarity[:, : self.pinned] = -2.0
        selected = similarity.topk(self.rows, dim=1, largest=False).indices
        index = selected[..., None].expand(-1, -1, x.shape[2])
        rows = normed.gather(1, index)
        value = reference.value.scatter(1, index, block.value(rows))
        attention = attend(block, block.query(rows), key, value)
        middle = x + reference.attention.scatter(1, index, attention)
        mlp = _feed_forward(block, middle.gather(1, index))
        return middle + reference.mlp.scatter(1, index, mlp)


def attend(block: Block, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention branch of queries (S, K, C) over keys and values (S, N, C), by torch's SDPA."""
    q, k, v = (part.unflatten(2, (block.heads, -1)).transpose(1, 2) for part in (query, key, value))
    mixed: Tensor = scaled_dot_product_attention(q, k, v)
    return block.attention_branch(mixed.transpose(1, 2).flatten(2))


def _feed_forward(block: Block, x: Tensor) -> Tensor:
    branch: Tensor = block.mlp(block.norm2(x))
    return branch if block.scale2 is None else cast(Tensor, block.scale2(branch))
