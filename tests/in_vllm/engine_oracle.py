# SPDX-License-Identifier: Apache-2.0
"""A cached frame in a tower of vLLM as one would write it down, with the tower's own modules.

Rows are looked at through what the stock tower calls its blocks with: whole loops, nothing clever.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class EngineOracle:
    """Re-encodes given rows of one stream's frames; everything else stays what it was.

    What the first block is called with is taken from the frame that the engine encoded last.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self.blocks = blocks
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.outputs: list[Tensor] = []
        self.x: Tensor | None = None
        self.call: dict[str, Any] = {}
        encoded = blocks[0].forward  # vLLM's blocks call it past any hook

        def see(x: Tensor, **kwargs: Any) -> Any:
            self.x, self.call = x.flatten(0, 1).clone(), kwargs
            return encoded(x, **kwargs)

        blocks[0].forward = see

    @torch.inference_mode()
    def encode(self, rows: Tensor | None) -> Tensor:
        """Encode the last frame: rows (K,) of it, or all; returns its tokens."""
        assert self.x is not None
        x, every = self.x, torch.arange(len(self.x))
        rows = every if rows is None else rows.long()
        if len(rows) == len(every):
            self.keys, self.values, self.outputs = [], [], []
        for number, block in enumerate(self.blocks):
            norm1, norm2, projection = self.parts(block)
            query, key, value = self.project(block, norm1(x))
            if len(self.keys) == number:
                self.keys.append(key.clone())
                self.values.append(value.clone())
                self.outputs.append(torch.zeros_like(x))
            self.keys[number][rows], self.values[number][rows] = key[rows], value[rows]
            middle = x + projection(self._attend(number, query))[0]
            self.outputs[number][rows] = (middle + block.mlp(norm2(middle)))[rows]
            x = self.outputs[number]
        return self.tokens()

    def parts(self, block: Any) -> tuple[Any, Any, Any]:
        """The norms of a block, and its output projection."""
        raise NotImplementedError

    def project(self, block: Any, normed: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values (N, heads, d) of all rows."""
        raise NotImplementedError

    def tokens(self) -> Tensor:
        """What the engine makes of the last block's output, and of others."""
        raise NotImplementedError

    def bounds(self, number: int) -> list[int]:
        """Where the stretches begin and end inside which rows attend."""
        return [0, len(self.outputs[number])]

    def _attend(self, number: int, query: Tensor) -> Tensor:
        """Mixed values (N, C), each row's inside its own stretch."""
        key, value = self.keys[number], self.values[number]
        mixed = torch.zeros_like(query)
        for first, last in itertools.pairwise(self.bounds(number)):
            for row in range(first, last):
                logits = torch.einsum("hd,nhd->hn", query[row], key[first:last])
                weights = (logits * query.shape[-1] ** -0.5).softmax(-1)
                mixed[row] = torch.einsum("hn,nhd->hd", weights, value[first:last])
        return mixed.flatten(1)


class QwenOracle(EngineOracle):
    """Of a tower of Qwen-VL."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.visual.blocks)
        self.visual = model.visual

    def parts(self, block: Any) -> tuple[Any, Any, Any]:
        return block.norm1, block.norm2, block.attn.proj

    def project(self, block: Any, normed: Tensor) -> Sequence[Tensor]:
        heads = block.attn.num_attention_heads_per_partition
        fused = block.attn.qkv(normed)[0]
        query, key, value = (part.reshape(len(normed), heads, -1) for part in fused.chunk(3, -1))
        cos, sin = (self.call[f"rotary_pos_emb_{name}"][:, None] for name in ("cos", "sin"))
        rotated = []
        for part in (query, key):
            left, right = part.chunk(2, -1)
            rotated.append(torch.cat([left * cos - right * sin, right * cos + left * sin], -1))
        return rotated[0], rotated[1], value

    def bounds(self, number: int) -> list[int]:
        full = getattr(self.visual, "fullatt_block_indexes", None)
        if full is None or number in full:
            return super().bounds(number)
        return self._metadata()["cu_window_seqlens"].tolist()

    def tokens(self) -> Tensor:
        tokens = self.visual.merger(self.outputs[-1])
        levels = getattr(self.visual, "deepstack_visual_indexes", ())
        deep = [
            merger(self.outputs[level])
            for merger, level in zip(
                getattr(self.visual, "deepstack_merger_list", ()), levels, strict=True
            )
        ]
        if hasattr(self.visual, "get_window_index_thw"):
            tokens = tokens[self._metadata()["reverse_indices"]]
        return torch.cat([tokens, *deep], dim=1)

    def _metadata(self) -> dict[str, Tensor]:
        side = round(len(self.outputs[0]) ** 0.5)
        return self.visual.prepare_encoder_metadata([[1, side, side]])


class SiglipOracle(EngineOracle):
    """Of LLaVA-OneVision's SigLIP, for videos of one frame."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.vision_tower.vision_model.encoder.layers)
        self.model = model

    def parts(self, block: Any) -> tuple[Any, Any, Any]:
        return block.layer_norm1, block.layer_norm2, block.self_attn.out_proj

    def project(self, block: Any, normed: Tensor) -> Sequence[Tensor]:
        fused = block.self_attn.qkv_proj(normed)[0]
        return [part.reshape(len(normed), 4, -1) for part in fused.chunk(3, -1)]

    def tokens(self) -> Tensor:
        projected = self.model.multi_modal_projector(self.outputs[-1])
        pooled = self.model.apply_pooling(projected[None])[0]
        return torch.cat([pooled, self.model.image_newline[None]])
