# SPDX-License-Identifier: Apache-2.0
"""The vision tower and the merger of a Qwen-VL, for what looks at frames one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stc_video.models.preprocess import Preprocessor
from stc_video.models.qwen_frames import StillPatches
from stc_video.models.qwen_vl import QwenVLAdapter
from stc_video.towers.observers import outputs_of
from stc_video.towers.varlen import VarlenTower


class QwenEncoder:
    """The parts that turn pictures into tokens of the language model.

    A picture is a frame of its own, a temporal patch in which it stands still, as an image is.

    Parameters
    ----------
    adapter
        Of a model.

    Attributes
    ----------
    tower : Module
        The vision tower, which holds the merger.
    """

    def __init__(self, adapter: QwenVLAdapter) -> None:
        self._adapter = adapter
        self.tower: nn.Module = adapter.tower
        parts = VarlenTower.find(adapter.tower)
        assert parts is not None
        self._parts = parts
        self._last: tuple[Tensor, Tensor] | None = None

    def to(self, device: torch.device) -> None:
        """Move the tower, which holds the merger."""
        self.tower.to(device)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower on ``pixel_values`` (F, h, w, P): (F, h * w, C), what the merger takes.

        They are in the tower's own order: see :meth:`places`.
        """
        pixels = inputs["pixel_values"]
        with outputs_of([self._parts.blocks[-1].layer]) as outputs:
            merged = self._adapter.features(pixels, 1)
        rows = outputs[0].view(len(pixels), -1, outputs[0].shape[-1])
        # What deepstack adds is no token of its own.
        self._last = rows, merged[..., : merged.shape[-1] // (1 + self._adapter.deep)]
        return rows

    def features(self, tokens: Tensor) -> Tensor:
        """Return the merged tokens (F, N, D) of what `tokens` returned last.

        Raises
        ------
        ValueError
            If it is something else: the tower itself has merged, and does not again.
        """
        if self._last is None or tokens is not self._last[0]:
            raise ValueError("`LoadedModel.features`: tokens must be those of the last `encode`")
        return self._last[1]

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features`."""
        return grid[0] // self._parts.merge, grid[1] // self._parts.merge

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Return the places on a grid, counted row by row, of what `tokens` returns."""
        return self._parts.places(*grid)

    def preprocessor(self, processor: Any | None) -> Preprocessor:
        """Return what prepares frames for the tower, with settings of the model's processor."""
        return StillPatches.of(self._adapter.temporal_patches(processor))

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Layers, width and heads of the tower; its configurations have several names for them."""
        config: Any = self.tower.config
        return self._parts.depth, self._parts.blocks[0].channels, int(config.num_heads)
