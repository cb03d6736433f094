# SPDX-License-Identifier: Apache-2.0
"""Reference of the operators from pictures to patches.

The arithmetic is the one of Pillow: along each axis a weighted sum in integers, rounded to a byte.
So every backend gives the same bits, and in whatever order it adds them.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: weights are whole numbers that stand for fractions of 2 to this power
FRACTION_BITS = 22
#: values that a byte can have
BYTES = 256


def frames_to_patches(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    """Resized pictures, cut into patches, each byte replaced by its value."""
    down, across = len(rows) // patch_height, len(columns) // patch_width
    resized = _weighted(pictures.int(), columns[: across * patch_width], axis=2)
    resized = _weighted(resized, rows[: down * patch_height], axis=1)
    cut = resized.unflatten(2, (across, patch_width)).unflatten(1, (down, patch_height))
    patches = cut.permute(0, 1, 3, 5, 2, 4)
    channel = torch.arange(3, device=values.device).view(3, 1, 1)
    return values[channel, patches.long()].flatten(3).flatten(1, 2)


def update_patches_(
    patches: Tensor,
    pictures: Tensor,
    previous: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    """Overwrite the patches that see a pixel that changed; return which they are."""
    differs = (pictures != previous).any(-1).float()
    seen_rows = _seen(rows, pictures.shape[1], patch_height).float()
    seen_columns = _seen(columns, pictures.shape[2], patch_width).float()
    changed = (seen_rows @ differs @ seen_columns.T > 0).flatten(1)
    new = frames_to_patches(pictures, rows, columns, values, patch_height, patch_width)
    patches.copy_(torch.where(changed[..., None], new, patches))
    return changed


def _starts(taps: Tensor, size: int) -> Tensor:
    """Where the window of each pixel starts, so that it lies within the picture."""
    return taps[:, 0].clamp(0, size - (taps.shape[1] - 1))


def _weighted(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """Weighted sums along an axis of (B, H, W, 3) int32, as bytes; sums wrap around."""
    starts = _starts(taps, x.shape[axis])
    shape = (-1, 1, 1) if axis == 1 else (-1, 1)
    total = torch.full((), 1 << (FRACTION_BITS - 1), dtype=torch.int32, device=x.device)
    for place, weights in enumerate(taps[:, 1:].unbind(1)):
        total = total + x.index_select(axis, starts + place) * weights.view(shape)
    return (total >> FRACTION_BITS).clamp(0, BYTES - 1)


def _seen(taps: Tensor, size: int, patch: int) -> Tensor:
    """Mask (patches, size) of the pixels along an axis that each patch sees."""
    starts = _starts(taps[: len(taps) // patch * patch], size).view(-1, patch)
    first, last = starts.amin(1, keepdim=True), starts.amax(1, keepdim=True) + taps.shape[1] - 2
    place = torch.arange(size, device=taps.device)
    return (place >= first) & (place <= last)
