# SPDX-License-Identifier: Apache-2.0
"""Temporal patches of pictures, which are the frames of Qwen-VL's towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stc_video.models.preprocess import Preprocessor, processor_class, square_side

#: bounds of a picture's size in tokens, those of the released processors for video
MIN_TOKENS, MAX_TOKENS = 128, 768


class TemporalPatches:
    """Makes temporal patches of pictures by transformers' own image processor.

    Parameters
    ----------
    tower
        The vision tower.
    processor
        The model's image processor, whose mean, deviation and resampling are taken over, or None.
    min_tokens, max_tokens
        Bounds of a picture's size after resizing; its sides become multiples of a token's, which
        is 28 pixels in Qwen2-VL and 32 in Qwen3-VL.
    **otherwise
        Settings of the image processor where the model's own does not say.

    Attributes
    ----------
    processor
        transformers' own, with these settings.
    merge
        Side of a merge block, the rows of which follow one another.
    pictures
        How many make a frame.
    side
        Of a patch, in pixels.
    values
        P: values of a row.
    """

    def __init__(
        self,
        tower: nn.Module,
        processor: Any | None = None,
        *,
        min_tokens: int = MIN_TOKENS,
        max_tokens: int = MAX_TOKENS,
        **otherwise: Any,
    ) -> None:
        config: Any = tower.config
        keep = {k: getattr(processor, k, None) for k in ("image_mean", "image_std", "resample")}
        self.merge = max(2, getattr(config, "spatial_merge_size", 2))
        pictures: Any = getattr(config, "temporal_patch_size", getattr(config, "patch_temporal", 1))
        self.pictures = int(pictures or 1)
        self.side = square_side(config.patch_size)
        token = (self.side * self.merge) ** 2
        self.values = 3 * self.pictures * self.side**2
        self.processor = processor_class("Qwen2VLImageProcessor")(
            size={"shortest_edge": min_tokens * token, "longest_edge": max_tokens * token},
            patch_size=self.side,
            temporal_patch_size=self.pictures,
            merge_size=self.merge,
            do_convert_rgb=False,
            **otherwise | {k: v for k, v in keep.items() if v is not None},
        )

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Make temporal patches.

        Parameters
        ----------
        frames
            (H, W, 3) uint8 RGB, all of one size; a missing last one repeats the one before, as the
            released processors do it.

        Returns
        -------
        Tensor
            (T, h, w, P) float32: T temporal patches of h x w rows.
        """
        out = self.processor(
            images=list(frames), return_tensors="pt", input_data_format="channels_last"
        )
        _, height, width = (int(side) for side in out["image_grid_thw"][0])
        # An image is a picture that stands still: each row holds it once per picture in time.
        rows: Tensor = out["pixel_values"].view(len(frames), height * width, 3, self.pictures, -1)
        still = rows[:, :, :, 0]
        missing = -len(still) % self.pictures
        still = torch.cat([still, still[-1:].expand(missing, -1, -1, -1)])
        moving = still.unflatten(0, (-1, self.pictures)).movedim(1, 3)
        patches: Tensor = moving.reshape(len(moving), height, width, -1)
        return patches


@dataclass(frozen=True, eq=False, kw_only=True)
class StillPatches(Preprocessor):
    """Makes a frame of each picture alone, a temporal patch in which it stands still.

    Attributes
    ----------
    patches
        Makes temporal patches.
    """

    patches: TemporalPatches

    @classmethod
    def of(cls, patches: TemporalPatches) -> StillPatches:
        """Take pictures as these temporal patches do."""
        made: Any = patches.processor
        return cls(processor=made, patch_size=made.patch_size, patches=patches)

    def __call__(self, frames: Sequence[npt.NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Prepare frames (H, W, 3): `pixel_values` (F, h, w, P) float32."""
        twice = [picture for picture in frames for _ in range(self.patches.pictures)]
        return {"pixel_values": self.patches(twice)}

    def grid(self, inputs: dict[str, Tensor]) -> tuple[int, int]:
        """Return rows and columns of the patches of such inputs."""
        _, height, width, _ = inputs["pixel_values"].shape
        return height, width

    def shown(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the pictures (F, 3, h * patch, w * patch), still normalised."""
        (height, width), block, side = self.grid(inputs), self.patches.merge, self.patch_size
        values = inputs["pixel_values"].detach().float().cpu()
        every = values.unflatten(3, (3, self.patches.pictures, side, side))
        patches = every.select(4, -1)
        blocks = patches.reshape(-1, height // block, width // block, block, block, 3, side, side)
        raster: Tensor = blocks.permute(0, 5, 1, 3, 6, 2, 4, 7)
        return raster.reshape(-1, 3, height * side, width * side)
