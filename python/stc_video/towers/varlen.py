# SPDX-License-Identifier: Apache-2.0
"""Towers that take frames of any size as rows behind one another: Qwen-VL, GLM-4V, VideoLLaMA 3.

A frame is a temporal patch of one or two pictures. Its rows need not lie in raster order; queries
and keys are rotated by their place in the picture (2-D RoPE); attention stays inside a frame, or in
Qwen2.5-VL's windowed blocks inside a window; a merger may make one token of four rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError
from stc_video.towers.block import Block
from stc_video.towers.layouts import is_packed, layout_of
from stc_video.towers.positions import FrameGeometry


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
        The module that takes the grids of the frames.
    ancestors
        ``root`` and the modules between it and the blocks, outermost first.
    blocks
        The transformer blocks, in order.
    mergers
        What makes tokens of rows; none in VideoLLaMA 3.
    merge
        Side of a merge block: 2, or 1 if nothing is merged in it.
    window
        Side of a window, in merge blocks; 0 if no block is windowed.
    geometry
        Of the frames under way; the blocks look at it.
    """

    root: nn.Module
    ancestors: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]
    mergers: tuple[MergerSite, ...]
    merge: int
    window: int
    geometry: FrameGeometry

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

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
        towers = list(_towers(model))
        if not towers:
            return None
        if len(towers) > 1:
            raise UnsupportedModelError(
                f"attach_cacher: {type(model).__name__} holds {len(towers)} towers "
                f"({', '.join(type(path[0]).__name__ for path in towers)}); pass one of them"
            )
        return cls._of(towers[0])

    @classmethod
    def _of(cls, path: Sequence[Any]) -> VarlenTower:
        """Take a tower apart: the modules from it down to its list of blocks."""
        *ancestors, layers = path
        tower = ancestors[0]
        devices = {str(parameter.device) for parameter in layers.parameters()}
        if len(devices) > 1:
            raise UnsupportedModelError(
                f"attach_cacher: the blocks of {type(tower).__name__} must be on one device, "
                f"got {', '.join(sorted(devices))}"
            )
        full = _full_attention(tower, len(layers))
        geometry = FrameGeometry()
        blocks = tuple(
            Block.of(layer, geometry, number not in full) for number, layer in enumerate(layers)
        )
        merge, window = int(getattr(tower, "spatial_merge_size", 1)), 0
        if any(block.is_windowed for block in blocks):
            window = tower.window_size // merge // tower.patch_size
        mergers = tuple(_mergers(tower, len(blocks)))
        return cls(tower, tuple(ancestors), blocks, mergers, merge, window, geometry)

    @property
    def cached_modules(self) -> list[nn.Module]:
        """The modules whose results a cacher keeps."""
        return [*(block.layer for block in self.blocks), *(site.module for site in self.mergers)]

    def rescan(self) -> VarlenTower:
        """Look for the blocks and their parts again, after somebody put others in their place."""
        return VarlenTower._of(next(_towers(self.root)))

    def windows(self, height: int, width: int) -> tuple[int, ...]:
        """Sizes in rows of the windows of a grid, in the order in which their rows follow."""
        if not self.window:
            return (height * width,)
        rows, columns = (_pieces(side // self.merge, self.window) for side in (height, width))
        return tuple(r * c * self.merge**2 for r in rows for c in columns)

    def places(self, height: int, width: int) -> Tensor:
        """Places on a grid, counted row by row, of the rows of a frame as the blocks see them.

        For frames whose rows come merge block by merge block, as from Qwen-VL's processors.
        """
        return places_of(height, width, self.merge, self.window)


def places_of(height: int, width: int, side: int, window: int) -> Tensor:
    """Places on a grid, counted row by row, of rows in merge blocks, and these in windows if any.

    Parameters
    ----------
    height, width
        Of the grid.
    side
        Of a merge block.
    window
        Side of a window in merge blocks, or 0.
    """
    raster = torch.arange(height * width).view(height // side, side, width // side, side)
    blocks = raster.transpose(1, 2)
    window = window or max(blocks.shape[:2])
    return torch.cat([
        part.flatten() for rows in blocks.split(window) for part in rows.split(window, dim=1)
    ])  # fmt: skip


def _full_attention(tower: Any, layers: int) -> Sequence[int]:
    """Numbers of the blocks that attend to the whole frame, not to a window (Qwen2.5-VL, Muse)."""
    kinds = getattr(getattr(tower, "config", None), "layer_types", None) or ()
    if "window_attention" in kinds:
        return [number for number, kind in enumerate(kinds) if kind != "window_attention"]
    every: Sequence[int] = getattr(tower, "fullatt_block_indexes", range(layers))
    return every


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
    if hasattr(tower, "merger"):
        yield MergerSite(tower.merger, layers - 1)


def _towers(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Towers in a model: each with the modules from it down to its list of blocks.

    The tower is the innermost module around the blocks that takes the grids of the frames.
    """
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        if is_packed(module[0]) and layout_of(module[0]) is not None:
            steps = name.split(".")
            path = [model.get_submodule(".".join(steps[:n])) for n in range(len(steps) + 1)]
            roots = [n for n, one in enumerate(path[:-1]) if _takes_grids(one)]
            if roots:
                yield path[roots[-1] :]


def _takes_grids(module: nn.Module) -> bool:
    return "grid_thw" in inspect.signature(type(module).forward).parameters
