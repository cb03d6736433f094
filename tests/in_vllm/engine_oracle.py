# SPDX-License-Identifier: Apache-2.0
"""A cached frame in a tower of vLLM as one would write it down, with the tower's own modules.

Rows are looked at through what the stock tower calls its blocks with: whole loops, nothing clever.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


class EngineOracle:
    """Re-encodes given rows of one stream's frames; everything else stays what it was.

    What the first block is called with is taken from the frame that the engine encoded last.
    """

    def __init__(self, model: Any) -> None:
        self.visual = model.visual
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.x: Tensor | None = None
        self.call: dict[str, Any] = {}
        first = self.visual.blocks[0]
        encoded = first.forward  # vLLM's blocks call it past any hook

        def see(x: Tensor, **kwargs: Any) -> Tensor:
            self.x, self.call = x[:, 0].clone(), kwargs
            return encoded(x, **kwargs)

        first.forward = see

    @torch.inference_mode()
    def encode(self, rows: Tensor | None) -> Tensor:
        """Encode the last frame: rows (K,) of it, or all; returns its tokens."""
        assert self.x is not None
        x, every = self.x, torch.arange(len(self.x))
        rows = every if rows is None else rows.long()
        if len(rows) == len(every):
            self.keys, self.values, self.outputs = [], [], []
        for number, block in enumerate(self.visual.blocks):
            query, key, value = self._project(block, x)
            if len(self.keys) == number:
                self.keys.append(key.clone())
                self.values.append(value.clone())
                self.outputs.append(torch.zeros_like(x))
            self.keys[number][rows], self.values[number][rows] = key[rows], value[rows]
            mixed = self._attend(number, query)
            middle = x + _first(block.attn.proj(mixed))
            self.outputs[number][rows] = (middle + block.mlp(block.norm2(middle)))[rows]
            x = self.outputs[number]
        return self._tokens()

    def _project(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (N, heads, d) of all rows."""
        heads = block.attn.num_attention_heads_per_partition
        fused = _first(block.attn.qkv(block.norm1(x)))
        query, key, value = (part.reshape(len(x), heads, -1) for part in fused.chunk(3, -1))
        cos, sin = (self.call[f"rotary_pos_emb_{name}"][:, None] for name in ("cos", "sin"))
        rotated = []
        for part in (query, key):
            left, right = part.chunk(2, -1)
            rotated.append(torch.cat([left * cos - right * sin, right * cos + left * sin], -1))
        return rotated[0], rotated[1], value

    def _attend(self, number: int, query: Tensor) -> Tensor:
        """Mixed values (N, C), each row's inside its own stretch."""
        key, value = self.keys[number], self.values[number]
        mixed = torch.zeros_like(query)
        bounds = self._bounds(number)
        for first, last in itertools.pairwise(bounds):
            for row in range(first, last):
                logits = torch.einsum("hd,nhd->hn", query[row], key[first:last])
                weights = (logits * query.shape[-1] ** -0.5).softmax(-1)
                mixed[row] = torch.einsum("hn,nhd->hd", weights, value[first:last])
        return mixed.flatten(1)

    def _bounds(self, number: int) -> list[int]:
        size = len(self.outputs[0]) if self.outputs else 0
        full = getattr(self.visual, "fullatt_block_indexes", None)
        if full is None or number in full:
            return [0, size]
        side = round(size**0.5)
        return self.visual.prepare_encoder_metadata([[1, side, side]])["cu_window_seqlens"].tolist()

    def _tokens(self) -> Tensor:
        tokens = self.visual.merger(self.outputs[-1])
        levels = getattr(self.visual, "deepstack_visual_indexes", ())
        deep = [
            merger(self.outputs[level])
            for merger, level in zip(
                getattr(self.visual, "deepstack_merger_list", ()), levels, strict=True
            )
        ]
        if hasattr(self.visual, "get_window_index_thw"):
            side = round(len(self.outputs[0]) ** 0.5)
            metadata = self.visual.prepare_encoder_metadata([[1, side, side]])
            tokens = tokens[metadata["reverse_indices"]]
        return torch.cat([tokens, *deep], dim=1)


def _first(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned
