# SPDX-License-Identifier: Apache-2.0
"""Typical arguments of every operator for a geometry: one home for tests, tuning and benchmarks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stc_kernels.ops.patch_plan import PatchPlan, patch_plan


@dataclass(frozen=True)
class Geometry:
    """Sizes of a batch of frames.

    Attributes
    ----------
    tokens, channels
        N and C of a frame.
    k
        Tokens that are re-encoded, or kept.
    heads
        Attention heads; they divide the channels.
    batch
        Frames or streams.
    """

    tokens: int
    channels: int
    k: int
    heads: int = 16
    batch: int = 1


#: vision towers, for the operators of the cacher; a quarter of the tokens is re-encoded
TOWERS: dict[str, Geometry] = {
    "siglip-so400m": Geometry(tokens=729, channels=1152, k=182, heads=16),
    "clip-l-336": Geometry(tokens=577, channels=1024, k=144, heads=16),
    "dinov2-s": Geometry(tokens=257, channels=384, k=64, heads=6),
    "internvit-6b": Geometry(tokens=1025, channels=3200, k=256, heads=25),
    "qwen2.5-vl-720p": Geometry(tokens=4784, channels=1280, k=1196, heads=16),
}

#: what enters the language model, for the operators of the pruners
FEATURES: dict[str, Geometry] = {
    "llava-onevision": Geometry(tokens=196, channels=3584, k=64),
    "qwen2.5-vl-4k": Geometry(tokens=10549, channels=3584, k=2637),
}


@dataclass(frozen=True)
class _Maker:
    """Makes tensors of one dtype on one device, the same ones each time."""

    dtype: torch.dtype
    device: torch.device

    def random(self, *shape: int) -> Tensor:
        if self.device.type == "meta":
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        generator = torch.Generator(self.device).manual_seed(sum(shape))
        values = torch.randn(shape, generator=generator, device=self.device)
        return values.to(self.dtype)

    def indices(self, g: Geometry) -> Tensor:
        if self.device.type == "meta":
            return torch.empty((g.batch, g.k), dtype=torch.int32, device=self.device)
        scores = torch.rand((g.batch, g.tokens), device=self.device)
        return scores.topk(g.k, dim=1).indices.sort(dim=1).values.int()

    def frames(self, g: Geometry) -> Tensor:
        return self.random(g.batch, g.tokens, g.channels)

    def rows(self, g: Geometry) -> Tensor:
        return self.random(g.batch, g.k, g.channels)

    def changed(self, g: Geometry) -> Tensor:
        """Frames a little different from those of `frames`."""
        return self.frames(g) + 0.3 * self.random(1, g.tokens, g.channels)

    def picture_size(self, g: Geometry) -> tuple[int, int]:
        """Two and a half times that of the patches together."""
        return tuple(5 * side * _side(g) // 2 + 1 for side in _grid(g.tokens))  # type: ignore[return-value]

    def pictures(self, g: Geometry) -> Tensor:
        height, width = self.picture_size(g)
        if self.device.type == "meta":
            return torch.empty((g.batch, height, width, 3), dtype=torch.uint8, device=self.device)
        return (self.random(g.batch, height, width, 3).float() * 64 + 128).clamp(0, 255).byte()

    def moved_pictures(self, g: Geometry) -> Tensor:
        """The same but for a rectangle in the middle."""
        pictures = self.pictures(g)
        height, width = self.picture_size(g)
        pictures[:, height // 3 : height // 2, width // 3 : width // 2] ^= 1
        return pictures

    def heads(self, g: Geometry, count: int) -> Tensor:
        return self.random(g.batch, count, g.heads, g.channels // g.heads)


def _channels(make: _Maker, g: Geometry) -> Tensor:
    """Every other channel."""
    return torch.arange(g.channels, device=make.device) % 2 == 0


def _marked(make: _Maker, g: Geometry) -> Tensor:
    """Two of three tokens of each frame."""
    return (torch.arange(g.tokens, device=make.device) % 3 > 0).repeat(g.batch, 1)


def _thirds(make: _Maker, g: Geometry) -> Tensor:
    """Three neighbours each become one."""
    return (torch.arange(g.tokens, device=make.device) // 3).int().repeat(g.batch, 1)


def _side(g: Geometry) -> int:
    """Height and width of a patch that has about as many values as a token has channels."""
    return max(1, math.isqrt(g.channels // 3))


def _plan(make: _Maker, g: Geometry) -> PatchPlan:
    """From the pictures to as many patches as there are tokens."""
    down, across = _grid(g.tokens)
    size, side = (down * _side(g), across * _side(g)), _side(g)
    settings: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "dtype": make.dtype}
    return patch_plan(make.picture_size(g), size, (side, side), device=make.device, **settings)


def _grid(tokens: int) -> tuple[int, int]:
    """Height and width of the grid nearest to a square."""
    height = next(h for h in range(math.isqrt(tokens), 0, -1) if tokens % h == 0)
    return height, tokens // height


_ARGUMENTS: dict[str, Callable[[_Maker, Geometry], tuple[Any, ...]]] = {
    "token_cosine": lambda make, g: (make.frames(g), make.changed(g)),
    "select_changed": lambda make, g: (make.frames(g), make.changed(g), g.k, 0),
    "select_changed_below": lambda make, g: (make.frames(g), make.changed(g), 0.95, g.k, 1),
    "gather_rows": lambda make, g: (make.frames(g), make.indices(g)),
    "scatter_rows_": lambda make, g: (make.frames(g), make.indices(g), make.rows(g)),
    "gather_layer_norm": lambda make, g: (
        make.frames(g),
        make.indices(g),
        make.random(g.channels),
        make.random(g.channels),
        1e-6,
    ),
    "scatter_residual": lambda make, g: (
        make.frames(g),
        make.changed(g),
        make.indices(g),
        make.rows(g),
    ),
    "sparse_query_attention": lambda make, g: (
        make.heads(g, g.k),
        make.heads(g, g.tokens),
        make.heads(g, g.tokens),
        (g.channels // g.heads) ** -0.5,
        None,
    ),
    "add_layer_norm": lambda make, g: (
        make.rows(g),
        make.rows(g),
        make.random(g.channels),
        make.random(g.channels),
        1e-6,
        None,
    ),
    "bias_gelu": lambda make, g: (
        make.random(g.batch, g.k, 4 * g.channels),
        make.random(4 * g.channels),
        "tanh",
    ),
    "scatter_key_value_": lambda make, g: (
        make.frames(g),
        make.frames(g),
        make.indices(g),
        *make.random(g.batch, g.k, 3 * g.channels).chunk(3, dim=2)[1:],
        make.random(g.channels),
        make.random(g.channels),
    ),
    "channel_variance": lambda make, g: (make.frames(g),),
    "saliency_topk": lambda make, g: (
        make.frames(g),
        make.random(g.channels).float(),
        g.k,
        "gaussian",
        0.5,
        _channels(make, g),
    ),
    "spatial_redundancy": lambda make, g: (
        make.frames(g).unflatten(1, _grid(g.tokens)),
        _marked(make, g).unflatten(1, _grid(g.tokens)),
    ),
    "compact_tokens": lambda make, g: (make.frames(g), _marked(make, g), g.batch * g.k),
    "bipartite_match": lambda make, g: (make.frames(g), g.tokens // 3, 0),
    "merge_tokens": lambda make, g: (make.frames(g), _thirds(make, g), -(-g.tokens // 3), None),
    "attention_column_mean": lambda make, g: (
        make.heads(g, g.tokens),
        make.heads(g, g.tokens),
        (g.channels // g.heads) ** -0.5,
    ),
    "frames_to_patches": lambda make, g: (make.pictures(g), *_plan(make, g)),
    "update_patches_": lambda make, g: (
        torch.zeros((g.batch, g.tokens, 3 * _side(g) ** 2), dtype=make.dtype, device=make.device),
        make.pictures(g),
        make.moved_pictures(g),
        *_plan(make, g),
    ),
}

#: operators that see a frame after the projector
_OF_FEATURES = (
    "channel_variance",
    "saliency_topk",
    "spatial_redundancy",
    "compact_tokens",
    "bipartite_match",
    "merge_tokens",
)


def arguments(
    op: str, geometry: Geometry, dtype: torch.dtype, device: torch.device | str
) -> tuple[Any, ...]:
    """Return random arguments of ``op``, in the order of its schema.

    On the meta device they have shapes only.
    """
    return _ARGUMENTS[op](_Maker(dtype, torch.device(device)), geometry)


def geometries(op: str) -> dict[str, Geometry]:
    """Return the geometries that an operator meets in practice, by name."""
    return FEATURES if op in _OF_FEATURES else TOWERS
