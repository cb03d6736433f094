# SPDX-License-Identifier: Apache-2.0
"""The towers of Qwen2.5-VL and Qwen3-VL as vLLM has them, seen as towers of this package.

Their blocks have the parts of transformers' blocks, but linear layers return a pair, may have
packed their weights away, and are called and never read; queries and keys are rotated by half as
many numbers, which repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from stc_video.towers.block import Block
from stc_video.towers.layouts import layout_of
from stc_video.towers.positions import FrameGeometry, Tables
from stc_video.towers.varlen import MergerSite, VarlenTower


@dataclass(frozen=True)
class EngineBlock(Block):
    """One transformer block of vLLM, with all its heads on this device."""

    @property
    def channels(self) -> int:
        """Width of the residual stream."""
        return cast(int, self.qkv.input_size)

    def _project(self, normed: Tensor) -> Sequence[Tensor]:
        return _output(self.qkv(normed)).chunk(3, dim=-1)

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""
        return _output(self.output(mixed))

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""
        linears = (m for m in self.mlp.modules() if hasattr(m, "output_size"))
        return sum(cast(Any, m).input_size * cast(Any, m).output_size for m in linears)


def engine_tower(visual: nn.Module) -> VarlenTower:
    """Take a tower of vLLM apart; AttributeError if a part of it is missing."""
    tower = cast(Any, visual)
    full = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
    geometry = FrameGeometry()
    blocks = tuple(
        _block(layer, geometry, number not in full) for number, layer in enumerate(tower.blocks)
    )
    window = 0
    if any(block.is_windowed for block in blocks):
        window = tower.window_size // tower.spatial_merge_size // tower.patch_size
    mergers = tuple(_mergers(tower, len(blocks)))
    merge: int = tower.spatial_merge_size
    return VarlenTower(visual, (visual,), blocks, mergers, merge, window, geometry)


def enter_frame(tower: VarlenTower, cos: Tensor, sin: Tensor, grid: tuple[int, int]) -> None:
    """Describe the next frames: cos and sin (N, head size / 2) of their rows, rows and columns."""
    cos, sin = (torch.cat([half, half], dim=-1) for half in (cos, sin))
    tower.geometry.enter(Tables(cos, sin), len(cos), tower.windows(*grid))


def _block(layer: Any, geometry: FrameGeometry, is_windowed: bool) -> EngineBlock:
    layout = layout_of(layer)
    if layout is None:
        raise AttributeError(f"no row of towers/layouts.py fits {type(layer).__name__}")
    heads = layer.attn.num_attention_heads_per_partition
    return EngineBlock(layer, layout, heads, heads, 1.0, geometry, is_windowed, paths=layout.paths)


def _mergers(tower: Any, layers: int) -> Iterator[MergerSite]:
    pairs = zip(
        getattr(tower, "deepstack_merger_list", ()),
        getattr(tower, "deepstack_visual_indexes", ()),
        strict=True,
    )
    yield from (MergerSite(module, layer) for module, layer in pairs)
    yield MergerSite(tower.merger, layers - 1)


def _output(returned: Any) -> Tensor:
    """Return the output of a linear layer of vLLM, which may come with a bias to be added."""
    output, bias = returned
    return cast(Tensor, output if bias is None else output + bias)
