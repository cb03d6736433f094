# SPDX-License-Identifier: Apache-2.0
"""A cached temporal patch as one would write it down: all keys, whole loops, nothing clever."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(K, heads, d) by (K, d)."""
    half = x.shape[-1] // 2
    crossed = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos[:, None] + crossed * sin[:, None]


class Layer:
    """One stock block with the keys, values and results of every row of the last frame."""

    def __init__(self, block: nn.Module, kwargs: dict[str, Tensor]) -> None:
        self.block, self.heads = block, block.attn.num_heads
        self.cos, self.sin = kwargs["position_embeddings"]
        self.bounds = kwargs["cu_seqlens"].tolist()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values (N, heads, d) of all rows."""
        fused = self.block.attn.qkv(self.block.norm1(x))
        query, key, value = (p.reshape(len(x), self.heads, -1) for p in fused.chunk(3, -1))
        return rotate(query, self.cos, self.sin), rotate(key, self.cos, self.sin), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention branch of all rows, each inside its own stretch of the stock cu_seqlens."""
        out = torch.zeros_like(query)
        for first, last in zip(self.bounds, self.bounds[1:], strict=False):
            for row in range(first, last):
                logits = torch.einsum("hd,nhd->hn", query[row], key[first:last])
                weights = (logits * query.shape[-1] ** -0.5).softmax(-1)
                out[row] = torch.einsum("hn,nhd->hd", weights, value[first:last])
        return self.block.attn.proj(out.reshape(len(query), -1))

    def finish(self, x: Tensor, attention: Tensor) -> Tensor:
        x = x + attention
        return x + self.block.mlp(self.block.norm2(x))


class MotionOracle:
    """Re-encodes given rows; everything else stays what it was."""

    def __init__(self, tower: nn.Module, calls: list[dict[str, Tensor]]) -> None:
        pairs = zip(tower.blocks, calls, strict=True)
        self.layers = [Layer(block, kwargs) for block, kwargs in pairs]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def dense(self, x: Tensor) -> None:
        self.keys, self.values, self.outputs = [], [], []
        for layer in self.layers:
            query, key, value = layer.project(x)
            x = layer.finish(x, layer.attend(query, key, value))
            self.keys.append(key)
            self.values.append(value)
            self.outputs.append(x)

    def cached(self, x: Tensor, rows: Tensor) -> None:
        """Encode those rows (K,) of the input (N, C) of the first block."""
        rows = rows.long()
        for number, layer in enumerate(self.layers):
            query, key, value = layer.project(x)  # of all rows; the others are not looked at
            self.keys[number][rows], self.values[number][rows] = key[rows], value[rows]
            branch = layer.attend(query, self.keys[number], self.values[number])
            self.outputs[number][rows] = layer.finish(x, branch)[rows]
            x = self.outputs[number]


class StcOracle:
    """STC-Cacher with given rows per layer: fresh keys, and cached branches elsewhere."""

    def __init__(self, tower: nn.Module, calls: list[dict[str, Tensor]]) -> None:
        pairs = zip(tower.blocks, calls, strict=True)
        self.layers = [Layer(block, kwargs) for block, kwargs in pairs]
        self.values: list[Tensor] = []
        self.updates: list[Tensor] = []

    def dense(self, x: Tensor) -> Tensor:
        self.values, self.updates = [], []
        for layer in self.layers:
            query, key, value = layer.project(x)
            output = layer.finish(x, layer.attend(query, key, value))
            self.values.append(value)
            self.updates.append(output - x)
            x = output
        return x

    def cached(self, x: Tensor, selected: list[Tensor]) -> Tensor:
        for number, (layer, rows) in enumerate(zip(self.layers, selected, strict=True)):
            rows = rows.long()
            query, key, fresh = layer.project(x)
            value = self.values[number].clone()
            value[rows] = fresh[rows]
            output = x + self.updates[number]
            output[rows] = layer.finish(x, layer.attend(query, key, value))[rows]
            x = output
        return x
