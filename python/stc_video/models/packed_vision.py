# SPDX-License-Identifier: Apache-2.0
"""Vision towers of packed rows, for what looks at frames one by one: Qwen-VL, GLM-4V, Pixtral ...

A tower is what its own forward says: whether it takes rows with their grid, pictures, or a strip.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.models.preprocess import Preprocessor
from stc_video.models.qwen_frames import StillPatches, TemporalPatches
from stc_video.towers.observers import outputs_of
from stc_video.towers.pre_norm import PreNormTower
from stc_video.towers.varlen import VarlenTower, places_of

#: what a few towers take for the values (M, 3, pictures, side, side) of rows, by model type
_FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "kimi_k25_vision": lambda values: values[:, :, 0],
    "paddleocr_vl_vision": lambda values: values[None, :, :, 0],
    "cosmos3_edge_vision": lambda values: values[:, :, 0].permute(0, 2, 3, 1).flatten(1),
    "muse_glimmer_vision": lambda values: values.transpose(1, 2).flatten(1),
    "muse_spark_vision": lambda values: values.transpose(1, 2).flatten(1),
}
#: side of the merge blocks of every tower that merges
_MERGED = 2
#: arguments of a tower's forward by which it learns the sizes of pictures that lie in one row
_SIZES = {"grid_thw", "target_sizes", "image_sizes"}


def takes_rows(tower: type[nn.Module]) -> bool:
    """Whether towers of a class put all pictures of a call in one row."""
    names = list(inspect.signature(tower.forward).parameters)[1:]
    return names[:1] in (["pixel_values"], ["hidden_states"]) and bool(_SIZES & set(names))


class PackedEncoder:
    """The tower, and the merger if it is a part of it.

    A picture is a frame of its own, a temporal patch in which it stands still, as an image is.

    Parameters
    ----------
    tower
        The vision tower.
    patches
        Gives, for the model's image processor or None, what makes temporal patches of pictures.
    """

    def __init__(self, tower: nn.Module, patches: Callable[[Any], TemporalPatches]) -> None:
        self.tower = tower
        self._patches_for, self._patches = patches, patches(None)
        found = VarlenTower.find(tower)
        self._parts: VarlenTower | PreNormTower = found or PreNormTower.of(tower)
        self._window = 0 if found is None else found.window
        self._names = list(inspect.signature(type(tower).forward).parameters)[1:]
        # Side of the merge blocks in which the tower has its rows, 1 for raster order; and of
        # those of which it makes a token.
        self._order = int(getattr(tower, "spatial_merge_size", 1))
        self._side = _MERGED if found is not None and found.mergers else 1
        self._last: tuple[Tensor, Tensor] | None = None
        self._deep: Sequence[Tensor] = ()

    def to(self, device: torch.device) -> None:
        """Move the tower."""
        self.tower.to(device)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower on ``pixel_values`` (F, h, w, P): (F, h * w, C), what its blocks make.

        They are in the tower's own order: see :meth:`places`.
        """
        pixels = inputs["pixel_values"]
        with outputs_of([self._parts.blocks[-1].layer]) as outputs:
            output = self.tower(**self.arguments(pixels))
        rows = outputs[0].reshape(len(pixels), -1, outputs[0].shape[-1])
        self._last = rows, self._merged(output, rows, pixels)
        return rows

    def features(self, tokens: Tensor) -> Tensor:
        """Return the merged tokens (F, N, D) of what `tokens` returned last.

        Without a merger in the tower they are what it hands out, in the order of the grid.

        Raises
        ------
        ValueError
            If it is something else: the tower itself has merged, and does not again.
        """
        if self._last is None or tokens is not self._last[0]:
            raise ValueError("`LoadedModel.features`: tokens must be those of the last `encode`")
        return self._last[1]

    @property
    def deep_features(self) -> Sequence[Tensor]:
        """What the merged tokens (F, N, D) of the last call have besides (DeepStack), if any."""
        return self._deep

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features`, known from the first frame on."""
        return grid[0] // self._side, grid[1] // self._side

    def places(self, grid: tuple[int, int]) -> Tensor:
        """Return the places on a grid, counted row by row, of what `tokens` returns."""
        return places_of(*grid, self._order, self._window)

    def preprocessor(self, processor: Any | None) -> Preprocessor:
        """Return what prepares frames for the tower."""
        self._patches = self._patches_for(processor)
        return StillPatches.of(self._patches)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Layers, width and heads of the tower; its configurations have several names for them."""
        first = self._parts.blocks[0]
        return self._parts.depth, first.channels, first.heads

    def arguments(self, pixels: Tensor) -> dict[str, Any]:
        """Return what the tower's forward takes for temporal patches (F, h, w, P)."""
        frames, height, width = pixels.shape[:3]
        tower: Any = self.tower
        pixels = pixels.to(tower.dtype)
        if self._order != self._patches.merge:
            order = places_of(height, width, self._patches.merge, 0)
            flat = pixels.flatten(1, 2)
            pixels = torch.empty_like(flat).index_copy(1, order.to(pixels.device), flat)
        rows, side = pixels.reshape(frames * height * width, -1), self._patches.side
        places = torch.tensor([[height, width]] * frames, device=pixels.device)
        values = rows.view(len(rows), 3, -1, side, side)
        patches = values[:, :, 0]
        if "target_sizes" in self._names:  # the patches of all pictures beside each other
            return {"pixel_values": torch.cat(list(patches), -1)[None], "target_sizes": places}
        if "image_sizes" in self._names:  # whole pictures
            split = patches.view(frames, height, width, 3, side, side).permute(0, 3, 1, 4, 2, 5)
            return {"pixel_values": split.reshape(frames, 3, height * side, width * side)}
        is_video = isinstance(self._parts, VarlenTower)
        time = torch.tensor([[frames]] if is_video else [[1]] * frames, device=pixels.device)
        given = {"grid_thw": torch.cat([time, places[: len(time)]], dim=1)}
        if "merge_sizes" in self._names:
            given["merge_sizes"] = torch.ones(len(time), dtype=torch.long, device=pixels.device)
        form = _FORMS.get(tower.config.model_type)
        return given | {self._names[0]: rows if form is None else form(values)}

    def _merged(self, output: Any, rows: Tensor, pixels: Tensor) -> Tensor:
        """(F, N, D) the tokens that the tower hands out, on a grid, row by row."""
        frames, height, width = pixels.shape[:3]
        if isinstance(output, tuple):  # up to transformers 4.57
            output = dict(zip(("pooler_output", "deepstack_features"), output, strict=False))
        output = {"pooler_output": output} if isinstance(output, Tensor) else output
        for name in ("pooler_output", "last_hidden_state"):
            tokens = output.get(name)
            tokens = torch.cat(list(tokens)) if isinstance(tokens, (tuple, list)) else tokens
            if tokens is None:
                continue
            if tokens.dim() == 3 and len(tokens) not in (1, frames):
                tokens = tokens.flatten(1)  # Kimi's are still the rows of a block
            made = tokens.reshape(frames, -1, tokens.shape[-1])
            if made.shape[1] * _MERGED**2 == height * width:
                self._side = _MERGED
                self._deep = [one.view_as(made) for one in output.get("deepstack_features") or ()]
                return made
            if made.shape[1] == height * width:
                rows = made
                break
        self._side, self._deep = 1, ()
        return self._in_raster(rows, height, width)

    def _in_raster(self, rows: Tensor, height: int, width: int) -> Tensor:
        places = self.places((height, width)).to(rows.device)
        return torch.empty_like(rows).index_copy(1, places, rows)
