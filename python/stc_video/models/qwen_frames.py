# SPDX-License-Identifier: Apache-2.0
"""Temporal patches of pictures, which are the frames of Qwen-VL's towers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stc_video.models.preprocess import processor_class

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
    pictures
        How many make a frame.
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
        self.pictures: int = config.temporal_patch_size
        token = (config.patch_size * config.spatial_merge_size) ** 2
        self.values = 3 * self.pictures * config.patch_size**2
        self._make = processor_class("Qwen2VLImageProcessor")(
            size={"shortest_edge": min_tokens * token, "longest_edge": max_tokens * token},
            patch_size=config.patch_size,
            temporal_patch_size=config.temporal_patch_size,
            merge_size=config.spatial_merge_size,
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
        out = self._make(
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
