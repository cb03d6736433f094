# SPDX-License-Identifier: Apache-2.0
"""Towers that take frames of any size as rows behind one another: the Qwen-VL family.

A frame is a temporal patch of two pictures. Its rows lie in 2x2 merge blocks, not in raster order;
queries and keys are rotated by their place in the picture (2-D RoPE); attention stays inside a
frame, or in Qwen2.5-VL's windowed blocks inside a window; a merger makes one token of four rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stc_video.errors import UnsupportedModelError
from stc_video.rotary import apply_rotary
from stc_video.towers.attention import attention
from stc_video.towers.block import Part, is_plain_linear

__all__ = ["FrameGeometry", "MergerSite", "VarlenBlock", "VarlenTower"]

_TOWER_PARTS = ("patch_embed", "rotary_pos_emb", "blocks", "merger")
_BLOCK_PARTS = ("norm1", "norm2", "attn", "mlp")

SUPPORTED = (
    "towers built like those of Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 of transformers from "
    "4.57 on"
)


@dataclass
class FrameGeometry:
    """The frames under way: where their rows are. Shared by the blocks of a tower.

    Attributes
    ----------
    cos, sin
        (N, head size) float32, by which each row's queries and keys are rotated.
    windows
        Sizes of the windows, in rows; they follow each other.
    window_of
        (N,) int64 the window of each row.
    """

    cos: Tensor = field(default_factory=lambda: torch.empty(0))
    sin: Tensor = field(default_factory=lambda: torch.empty(0))
    windows: tuple[int, ...] = ()
    window_of: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def enter(self, cos: Tensor, sin: Tensor, windows: tuple[int, ...]) -> None:
        """Describe the next frames."""
        self.cos, self.sin = cos.float(), sin.float()
        if windows != self.windows or self.window_of.device != cos.device:
            sizes = torch.tensor(windows, device=cos.device)
            numbers = torch.arange(len(windows), device=cos.device)
            self.windows, self.window_of = windows, numbers.repeat_interleave(sizes)

    def rotate(self, x: Tensor, heads: int, indices: Tensor | None) -> Tensor:
        """Rotate queries or keys (B, K, C) by the places of their rows."""
        cos, sin = self.cos, self.sin
        if indices is not None:
            cos, sin = cos[indices.long()], sin[indices.long()]
        split = x.view(*x.shape[:2], heads, -1)
        return apply_rotary(split, cos.unsqueeze(-2), sin.unsqueeze(-2)).view(x.shape)


@dataclass(frozen=True)
class VarlenBlock:
    """One transformer block with a fused projection, by its parts, looked up when called.

    Attributes
    ----------
    layer
        The block.
    heads
        Number of heads.
    is_windowed
        Whether a row attends to its window only.
    geometry
        Of the frames under way.
    """

    layer: nn.Module
    heads: int
    is_windowed: bool
    geometry: FrameGeometry

    paths: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "norm1": ("norm1",),
        "norm2": ("norm2",),
        "qkv": ("attn", "qkv"),
        "output": ("attn", "proj"),
        "mlp": ("mlp",),
    }
    norm1 = Part()
    norm2 = Part()
    qkv = Part()
    output = Part()
    mlp = Part()

    @classmethod
    def of(cls, layer: nn.Module, is_windowed: bool, geometry: FrameGeometry) -> VarlenBlock:
        """Take a block apart; raises UnsupportedModelError naming what is missing."""
        name, parts = type(layer).__name__, cast(Any, layer)
        missing = [part for part in _BLOCK_PARTS if not hasattr(layer, part)]
        attn = getattr(layer, "attn", None)
        missing += [f"attn.{p}" for p in ("qkv", "proj", "num_heads") if not hasattr(attn, p)]
        if missing:
            raise UnsupportedModelError(
                f"attach_cacher: {name} is not a supported block: it has no "
                f"{', '.join(missing)}; supported are {SUPPORTED}"
            )
        if "position_embeddings" not in inspect.signature(type(layer).forward).parameters:
            raise UnsupportedModelError(
                f"attach_cacher: {name} of this release of transformers takes no "
                f"position_embeddings; supported are {SUPPORTED}"
            )
        return cls(
            layer=layer,
            heads=parts.attn.num_heads,
            is_windowed=is_windowed,
            geometry=geometry,
        )

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules of it that are called."""
        return self.norm1, self.norm2, self.qkv, self.output, self.mlp

    @property
    def returns_tuple(self) -> bool:
        """These blocks return a tensor in every release."""
        return False

    @property
    def channels(self) -> int:
        """Width of the residual stream."""
        return cast(int, self.qkv.in_features)

    def project(
        self, normed: Tensor, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normalised rows, each (B, K, C), in one product."""
        query, key, value = self.qkv(normed).chunk(3, dim=-1)
        rotate, heads = self.geometry.rotate, self.heads
        return rotate(query, heads, indices), rotate(key, heads, indices), value

    def project_query(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Queries alone."""
        return self.geometry.rotate(self._part(normed, 0), self.heads, indices)

    def project_key(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Keys alone."""
        return self.geometry.rotate(self._part(normed, 1), self.heads, indices)

    def project_value(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Values alone."""
        return self._part(normed, 2)

    def _part(self, normed: Tensor, number: int) -> Tensor:
        if not is_plain_linear(self.qkv):  # an adapter, a quantised layer, a hook
            return cast(Tensor, self.qkv(normed).chunk(3, dim=-1)[number])
        rows = slice(number * self.channels, (number + 1) * self.channels)
        bias = None if self.qkv.bias is None else self.qkv.bias[rows]
        return linear(normed, self.qkv.weight[rows], bias)

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Attention branch of some rows: query (B, K, C), key and value (B, N, C) -> (B, K, C)."""
        return self.attention_branch(self.attend(query, key, value, mask, indices))

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""
        return cast(Tensor, self.output(mixed))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Values mixed by attention, in front of the output projection."""
        geometry = self.geometry
        if not self.is_windowed or len(geometry.windows) == 1:
            return attention(query, key, value, self.heads, mask)
        if indices is None:
            queries, keys, values = (x.split(geometry.windows, 1) for x in (query, key, value))
            windows = zip(queries, keys, values, strict=True)
            return torch.cat([attention(q, k, v, self.heads) for q, k, v in windows], dim=1)
        # One call for whatever rows there are: their number per window is only known on the device.
        same = geometry.window_of[indices.long()][:, None, :, None] == geometry.window_of
        return attention(query, key, value, self.heads, same)

    def feed_forward(self, x: Tensor) -> Tensor:
        """MLP branch of some rows of the residual stream, (B, K, C) -> (B, K, C)."""
        return self.mlp_branch(self.norm2(x))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP branch of normalised rows, (B, K, C) -> (B, K, C)."""
        return cast(Tensor, self.mlp(normed))

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""
        linears = (m for m in self.mlp.modules() if isinstance(m, nn.Linear))
        return sum(module.weight.numel() for module in linears)


@dataclass(frozen=True)
class MergerSite:
    """A merger, and the block whose output it makes tokens of.

    Qwen3-VL has several (DeepStack), the others one behind the last block.
    """

    module: nn.Module
    layer: int


@dataclass(frozen=True)
class VarlenTower:
    """A tower whose frames are rows behind one another.

    Attributes
    ----------
    root
        The module with the blocks.
    blocks
        The transformer blocks, in order.
    mergers
        What makes tokens of rows.
    merge
        Side of a merge block: 2.
    window
        Side of a window, in merge blocks; 0 if no block is windowed.
    geometry
        Of the frames under way; the blocks look at it.
    """

    root: nn.Module
    blocks: tuple[VarlenBlock, ...]
    mergers: tuple[MergerSite, ...]
    merge: int
    window: int
    geometry: FrameGeometry

    @property
    def ancestors(self) -> tuple[nn.Module, ...]:
        """The tower calls its blocks itself."""
        return (self.root,)

    @property
    def prefix_tokens(self) -> int:
        """Every row is a patch."""
        return 0

    @classmethod
    def find(cls, model: object) -> VarlenTower | None:
        """Find the tower in a model, or recognise it; None if there is no such tower.

        Raises
        ------
        UnsupportedModelError
            If it is of a family that is not supported, or there are several.
        """
        if not isinstance(model, nn.Module):
            return None
        towers = [module for module in model.modules() if _is_varlen(module)]
        if not towers:
            return None
        if len(towers) > 1:
            raise UnsupportedModelError(
                f"attach_cacher: {type(model).__name__} holds {len(towers)} towers "
                f"({', '.join(type(tower).__name__ for tower in towers)}); pass one of them"
            )
        return cls._of(towers[0])

    @classmethod
    def _of(cls, root: nn.Module) -> VarlenTower:
        tower: Any = root
        devices = {str(parameter.device) for parameter in tower.blocks.parameters()}
        if len(devices) > 1:
            raise UnsupportedModelError(
                f"attach_cacher: the blocks of {type(root).__name__} must be on one device, "
                f"got {', '.join(sorted(devices))}"
            )
        full = getattr(root, "fullatt_block_indexes", range(len(tower.blocks)))
        geometry = FrameGeometry()
        blocks = tuple(
            VarlenBlock.of(layer, number not in full, geometry)
            for number, layer in enumerate(tower.blocks)
        )
        window = 0
        if any(block.is_windowed for block in blocks):
            window = tower.window_size // tower.spatial_merge_size // tower.patch_size
        mergers = tuple(_mergers(tower, len(blocks)))
        return cls(root, blocks, mergers, int(tower.spatial_merge_size), window, geometry)

    @property
    def cached_modules(self) -> list[nn.Module]:
        """The modules whose results a cacher keeps."""
        return [*(block.layer for block in self.blocks), *(site.module for site in self.mergers)]

    def rescan(self) -> VarlenTower:
        """Look for the blocks and their parts again, after somebody put others in their place."""
        return VarlenTower._of(self.root)

    def windows(self, height: int, width: int) -> tuple[int, ...]:
        """Sizes in rows of the windows of a grid, in the order in which their rows follow."""
        if not self.window:
            return (height * width,)
        rows, columns = (_pieces(side // self.merge, self.window) for side in (height, width))
        return tuple(r * c * self.merge**2 for r in rows for c in columns)


def _pieces(length: int, size: int) -> list[int]:
    """Cut a side into pieces of a size; the last one may be smaller."""
    return [min(size, length - start) for start in range(0, length, size)]


def _mergers(tower: Any, layers: int) -> Iterator[MergerSite]:
    for module, layer in zip(
        getattr(tower, "deepstack_merger_list", ()),
        getattr(tower, "deepstack_visual_indexes", ()),
        strict=True,
    ):
        if layer < layers:
            yield MergerSite(module, layer)
    yield MergerSite(tower.merger, layers - 1)


def _is_varlen(module: nn.Module) -> bool:
    """Whether a module looks like a tower of such frames."""
    if not all(isinstance(getattr(module, part, None), nn.Module) for part in _TOWER_PARTS):
        return False
    blocks = module.blocks
    return (
        isinstance(blocks, nn.ModuleList)
        and len(blocks) > 0
        and hasattr(getattr(blocks[0], "attn", None), "qkv")
        and hasattr(module, "spatial_merge_size")
    )
