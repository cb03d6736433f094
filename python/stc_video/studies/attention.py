# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of one layer of a tower, for pruners that rank by attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.pruners import Attention
from stc_video.towers.pre_norm import PreNormTower

__all__ = ["LayerProbe", "joined", "probe_layer"]


class LayerProbe:
    """What one attention layer computed in the tower's last call."""

    def __init__(self, heads: int, prefix_tokens: int) -> None:
        self._heads = heads
        self._prefix = prefix_tokens
        self._seen: dict[str, Tensor] = {}

    def note(self, name: str) -> Any:
        """Return a forward hook that notes a projection's result under this name."""

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            self._seen[name] = output

        return hook

    def attention(self) -> Attention:
        """Return queries and keys of the last call, (F, P + N, H, d)."""
        query, key = (
            self._seen[name].unflatten(-1, (self._heads, -1)) for name in ("query", "key")
        )
        return Attention(query, key, prefix=self._prefix)


@contextmanager
def probe_layer(tower: nn.Module, layer: int = -2) -> Iterator[LayerProbe]:
    """Note the queries and keys of a layer while the block runs; the tower computes as before.

    Parameters
    ----------
    tower
        A supported vision tower, without a cacher: a cacher re-encodes only some queries.
    layer
        Which one; VisionZip takes the last but one. A tower of one layer has only that.

    Yields
    ------
    LayerProbe
        Its `attention()` is that of the tower's last call.
    """
    parts = PreNormTower.of(tower)
    block = parts.blocks[max(layer, -len(parts.blocks))]
    probe = LayerProbe(block.heads, parts.prefix_tokens)
    handles = [
        block.query.register_forward_hook(probe.note("query")),
        block.key.register_forward_hook(probe.note("key")),
    ]
    try:
        yield probe
    finally:
        for handle in handles:
            handle.remove()


def joined(parts: list[Attention]) -> Attention:
    """Put the attention of consecutive frames together."""
    first = parts[0]
    query = torch.cat([part.query for part in parts])
    key = torch.cat([part.key for part in parts])
    return Attention(query, key, first.prefix, first.scale)
