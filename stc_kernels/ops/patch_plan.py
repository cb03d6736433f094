# SPDX-License-Identifier: Apache-2.0
"""The plan of a resize for the operators from pictures to patches, computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stc_kernels._checks import FLOAT_DTYPES, integer, number
from stc_kernels.reference.patches import BYTES, FRACTION_BITS

#: rows and columns of a picture and of what it is resized to
MOST_PIXELS = 2**16 - 1


class PatchPlan(NamedTuple):
    """The last arguments of ``frames_to_patches`` and ``update_patches_``.

    Attributes
    ----------
    rows, columns
        (height, 1 + K) and (width, 1 + K) int32: for each row and column of the resized picture
        the first one of the picture that it is a mixture of, then K weights in units of 2**-22.
    values
        (3, 256): what each byte becomes in each channel.
    patch_height, patch_width
        Of a patch in pixels of the resized picture.
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    patch_height: int
    patch_width: int


def patch_plan(
    picture_size: Sequence[int],
    size: Sequence[int],
    patch_size: Sequence[int],
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    scale: float = 1 / 255,
    resample: str = "bicubic",
    rounding: str = "pillow",
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> PatchPlan:
    """Compute the weights of an antialiased resize and the values of a normalisation.

    Both are those of the image processors of Hugging Face, so the patches are equal to theirs bit
    by bit. Those based on Pillow and the fast ones, based on torchvision, round differently: their
    bytes differ by 1 at most.

    Parameters
    ----------
    picture_size
        Height and width of the pictures.
    size
        Height and width that they are resized to.
    patch_size
        Height and width of a patch. What is left of `size` at the right and at the bottom is not
        in any patch, just as a convolution without padding leaves it out.
    mean, std
        Of each channel, in units of the scaled values.
    scale
        What a byte is multiplied by before it is normalised.
    resample
        ``"bicubic"`` or ``"bilinear"``.
    rounding
        Whose bits the patches have: ``"pillow"``, or ``"torchvision"``, whose weights have 16 bits,
        and which is what ``torch.nn.functional.interpolate`` makes of bytes on a CPU.
    dtype
        Of the patches: float32, float16 or bfloat16.
    device
        Where the pictures will be.

    Returns
    -------
    PatchPlan
        To be passed on: ``frames_to_patches(pictures, *plan)``.

    Raises
    ------
    ValueError
        On a size or a name that is not allowed, or a std of 0.
    TypeError
        On an unsupported dtype, or what is no number.
    """
    height, width = _pair("picture_size", picture_size)
    new_height, new_width = _pair("size", size)
    patch_height, patch_width = _pair("patch_size", patch_size)
    if patch_height > new_height or patch_width > new_width:
        raise ValueError(
            f"`patch_plan`: patch_size must be at most size ({new_height}, {new_width}), "
            f"got ({patch_height}, {patch_width})"
        )
    if resample not in _FILTERS:
        raise ValueError(
            f"`patch_plan`: resample must be one of {', '.join(_FILTERS)}, got {resample!r}"
        )
    if rounding not in _ROUNDINGS:
        raise ValueError(
            f"`patch_plan`: rounding must be one of {', '.join(_ROUNDINGS)}, got {rounding!r}"
        )
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"`patch_plan`: dtype must be float32, float16 or bfloat16, got {dtype}")
    values = _values(mean, std, number("patch_plan", "scale", scale), rounding)
    return PatchPlan(
        _taps(height, new_height, resample, rounding).to(device),
        _taps(width, new_width, resample, rounding).to(device),
        values.to(device, dtype),
        patch_height,
        patch_width,
    )


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"`patch_plan`: {name} must be a height and a width, got {value!r}")
    height, width = (integer("patch_plan", name, side) for side in value)
    if not (1 <= height <= MOST_PIXELS and 1 <= width <= MOST_PIXELS):
        raise ValueError(
            f"`patch_plan`: {name} must be between 1 and {MOST_PIXELS}, got {height} x {width}"
        )
    return height, width


def _bicubic(x: Tensor) -> Tensor:
    """Keys's cubic convolution with a = -0.5."""
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _bilinear(x: Tensor) -> Tensor:
    return torch.where(x < 1, 1 - x, 0.0)


#: name -> weight at a distance, and the distance from which on it is 0
_FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bicubic": (_bicubic, 2.0),
    "bilinear": (_bilinear, 1.0),
}

_ROUNDINGS = ("pillow", "torchvision")


def _taps(size: int, new_size: int, resample: str, rounding: str) -> Tensor:
    """Window and weights of each pixel along an axis, computed in float64 as Pillow does."""
    weight_at, support = _FILTERS[resample]
    scale = size / new_size
    stretch = max(scale, 1.0)  # a smaller picture is a mixture of all pixels under the filter
    center = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale
    first = (center - support * stretch + 0.5).long().clamp(min=0)
    last = (center + support * stretch + 0.5).long().clamp(max=size)
    count = int((last - first).max())
    place = first[:, None] + torch.arange(count)
    weights = weight_at(((place - center[:, None] + 0.5) * (1.0 / stretch)).abs())
    weights = torch.where(place < last[:, None], weights, 0.0)
    weights /= weights.cumsum(1)[:, -1:]  # one by one: another order has another last digit
    bits = FRACTION_BITS if rounding == "pillow" else _fraction_bits(float(weights.max()))
    fixed = (weights * 2.0**bits + torch.where(weights < 0, -0.5, 0.5)).trunc().int()
    fixed <<= FRACTION_BITS - bits
    # Every window has `count` pixels; those at the right end begin earlier, with weights of 0.
    start = first.clamp(max=size - count)
    taps = torch.zeros((new_size, 1 + count), dtype=torch.int32)
    taps[:, 0] = start
    at = (place - start[:, None] + 1).clamp(max=count)
    return taps.scatter_add_(1, at, torch.where(place < last[:, None], fixed, 0))


def _fraction_bits(largest: float) -> int:
    """As many as leave the largest weight 16 bits with a sign."""
    return next(
        bits for bits in range(FRACTION_BITS, 0, -1) if int(largest * 2**bits + 0.5) < 2**15
    )


def _values(mean: Sequence[float], std: Sequence[float], scale: float, rounding: str) -> Tensor:
    """The value of each byte in each channel, rounded where the processors round it."""
    channels = []
    for name, given in (("mean", mean), ("std", std)):
        if not isinstance(given, Sequence) or len(given) != 3:
            raise ValueError(f"`patch_plan`: {name} must be three numbers, got {given!r}")
        numbers = [number("patch_plan", name, value) for value in given]
        channels.append(torch.tensor(numbers, dtype=torch.float32)[:, None])
    if (channels[1] == 0).any():
        raise ValueError(f"`patch_plan`: std must not be 0, got {tuple(std)}")
    if rounding == "torchvision":  # which scales mean and std in place of the bytes
        if scale == 0:
            raise ValueError(
                "`patch_plan`: scale must not be 0 with the rounding of torchvision, got 0"
            )
        mean_of_bytes, std_of_bytes = (channel * (1.0 / scale) for channel in channels)
        return (torch.arange(BYTES) - mean_of_bytes) / std_of_bytes
    scaled = (torch.arange(BYTES, dtype=torch.float64) * scale).float()
    return (scaled - channels[0]) / channels[1]
