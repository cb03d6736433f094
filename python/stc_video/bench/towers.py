# SPDX-License-Identifier: Apache-2.0
"""The towers that are measured: a published geometry, weights of unit gain."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.loading.geometries import build_random
from stc_video.towers.block import Block
from stc_video.towers.pre_norm import PreNormTower


@dataclass(frozen=True)
class BenchTower:
    """A tower that nothing is ever attached to, and copies of it that share its weights.

    Attributes
    ----------
    geometry
        Name of the geometry.
    module
        The tower.
    """

    geometry: str
    module: nn.Module

    @classmethod
    def build(
        cls,
        geometry: str,
        *,
        layers: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> BenchTower:
        """Build a tower with random weights.

        Parameters
        ----------
        geometry
            One of :data:`stc_video.loading.geometries.TOWERS`.
        layers
            Number of layers, instead of the geometry's own.
        device, dtype
            Where the weights are, and in what type.
        """
        module: nn.Module = build_random(geometry, layers=layers)
        module.to(device=device, dtype=dtype)
        set_unit_gain(module)
        return cls(geometry, module)

    def encode(self, frames: Tensor) -> Tensor:
        """Encode frames (S, 3, H, W) densely: (S, N, C)."""
        output: Tensor = self.module(frames).last_hidden_state
        return output

    def twin(self) -> nn.Module:
        """Return a copy of the tower on the same weights."""
        shared = (*self.module.parameters(), *self.module.buffers())
        return copy.deepcopy(self.module, {id(tensor): tensor for tensor in shared})

    def rows(self, ratio: Fraction) -> int:
        """Return how many tokens are encoded at a ratio, class token and registers included."""
        share = math.floor(ratio * self.tokens)
        return min(self.tokens, max(self.prefix_tokens + 1, share))

    @property
    def config(self) -> Any:
        """The configuration of transformers."""
        return self.module.config

    @property
    def weight(self) -> Tensor:
        """One of the weights, for its type and device."""
        return next(self.module.parameters())

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(PreNormTower.of(self.module).blocks)

    @property
    def side(self) -> int:
        """Patches along a side of a frame."""
        return int(self.config.image_size) // int(self.config.patch_size)

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers."""
        return PreNormTower.of(self.module).prefix_tokens

    @property
    def tokens(self) -> int:
        """Tokens of a frame, N."""
        return self.prefix_tokens + self.side**2

    @property
    def weight_bytes(self) -> int:
        """Size of the weights."""
        return sum(parameter.nbytes for parameter in self.module.parameters())


@torch.no_grad()
def set_unit_gain(module: nn.Module) -> None:
    """Fill a tower with weights that keep activations of order one.

    With the values that transformers starts training from, most layers add next to nothing, and
    one that computes something wrong would not show in the output.
    """
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, device=device)
        if parameter.dim() > 1:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.copy_(1.0 + 0.1 * noise)


def replace_forwards(
    blocks: Sequence[Block], encoders: Sequence[Callable[[Tensor], Tensor]]
) -> None:
    """Let each block of a tower compute (S, N, C) -> (S, N, C) by a function of its own."""
    for block, encode in zip(blocks, encoders, strict=True):
        block.layer.forward = _in_form_of(block, encode)


def _in_form_of(block: Block, encode: Callable[[Tensor], Tensor]) -> Callable[..., Any]:
    returns_tuple = block.returns_tuple

    def forward(hidden_states: Tensor, *args: object, **kwargs: object) -> Any:
        output = encode(hidden_states)
        return (output,) if returns_tuple else output

    return forward
