# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks as vLLM has them, seen as blocks of this package.

They have the parts of transformers' blocks, but linear layers return a pair, may have packed their
weights away, and are called and never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from stc_video.towers.block import Block
from stc_video.towers.layouts import BlockLayout
from stc_video.towers.positions import FrameGeometry


@dataclass(frozen=True)
class EngineBlock(Block):
    """One transformer block of vLLM, with all its heads on this device."""

    @classmethod
    def taken_apart(
        cls, layer: Any, layout: BlockLayout, geometry: FrameGeometry, is_windowed: bool = False
    ) -> EngineBlock:
        """Take a block apart; AttributeError if it lacks a part."""
        if missing := layout.missing(layer):
            raise AttributeError(f"{type(layer).__name__} has no {' and no '.join(missing)}")
        heads = getattr(layer, layout.attention).attn.num_heads
        return cls(layer, layout, heads, heads, 1.0, geometry, is_windowed, paths=layout.paths)

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


def _output(returned: Any) -> Tensor:
    """Return the output of a linear layer of vLLM, which may come with a bias to be added."""
    output, bias = returned
    return cast(Tensor, output if bias is None else output + bias)
