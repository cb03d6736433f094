# SPDX-License-Identifier: Apache-2.0
"""What an image processor makes of pictures, by one operator, where that is the same bit by bit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_kernels import PatchPlan, available_backends, frames_to_patches, patch_plan

#: names of the filters by their numbers in Pillow
_FILTERS = {2: "bilinear", 3: "bicubic"}
_log = logging.getLogger(__name__)


class _Settings(NamedTuple):
    """All that the pixels of a processor depend on; `crop` is what is left of `size`, or all."""

    picture_size: tuple[int, int]
    size: tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float
    resample: str


class ExactResize:
    """Resizes, crops and normalises as an image processor does, in a tenth of the time.

    The first pictures of each size, and after each change of the processor's settings, are preceded
    by a picture of noise that goes both ways, with the rounding of Pillow and with that of fast
    processors. Where neither result is equal to the last bit, the processor goes on doing the work.
    """

    def __init__(self) -> None:
        self._plans: dict[_Settings, PatchPlan | None] = {}

    def __call__(
        self, processor: Any, pictures: Sequence[npt.NDArray[np.uint8]], **overrides: Any
    ) -> Tensor | None:
        """Return pixel values, or None where the processor has to make them.

        Parameters
        ----------
        processor : object
            A Hugging Face image processor.
        pictures : sequence of ndarray
            (H, W, 3) uint8, all of one size.
        **overrides
            Settings that the processor is called with.

        Returns
        -------
        Tensor or None
            (F, 3, height, width) float32.
        """
        settings = _settings(processor, pictures, overrides)
        if settings is None or not _is_compiled():
            return None
        if settings not in self._plans:
            self._plans[settings] = _checked_plan(processor, settings, overrides)
        plan = self._plans[settings]
        return None if plan is None else torch.cat([_pixels(one, plan) for one in pictures])


@functools.cache
def _is_compiled() -> bool:
    """Whether there are kernels: the reference would take longer than the processor."""
    return "native" in available_backends("frames_to_patches", "cpu")


def _settings(
    processor: Any, pictures: Sequence[npt.NDArray[np.uint8]], overrides: Mapping[str, Any]
) -> _Settings | None:
    """Return what a processor does, None if that is more than to resize, crop and normalise."""

    def setting(name: str) -> Any:
        return overrides.get(name, getattr(processor, name, None))

    steps = ("do_resize", "do_rescale", "do_normalize")
    others = ("do_pad", "do_image_splitting")
    if not all(map(setting, steps)) or any(map(setting, others)):
        return None
    shapes = {picture.shape for picture in pictures}
    size, mean, std = (setting(name) for name in ("size", "image_mean", "image_std"))
    scale = setting("rescale_factor")
    resample = _FILTERS.get(setting("resample"))
    plain = all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)
    if resample is None or len(shapes) != 1 or not plain or not isinstance(scale, float):
        return None
    colours = all(isinstance(value, Sequence) and len(value) == 3 for value in (mean, std))
    (shape,) = shapes
    if not colours or shape[2] != 3 or 0 in shape:
        return None
    resized = _resized(shape[:2], size)
    crop = _sides(setting("crop_size")) if setting("do_center_crop") else resized
    if not all((*resized, *crop)) or crop[0] > resized[0] or crop[1] > resized[1]:
        return None  # a crop of more than the picture has black around it
    return _Settings(shape[:2], resized, crop, tuple(mean), tuple(std), scale, resample)


def _resized(picture: tuple[int, int], size: Any) -> tuple[int, int]:
    """Height and width that a processor resizes a picture to, 0 where it does not say."""
    edge, others = side_of(size, "shortest_edge"), ("longest_edge", "max_height", "max_width")
    if not edge or any(side_of(size, name) for name in others):
        return _sides(size)
    height, width = (int(edge * side / min(picture)) for side in picture)
    return height, width


def _sides(size: Any) -> tuple[int, int]:
    return side_of(size, "height"), side_of(size, "width")


def side_of(size: Any, name: str) -> int:
    """A side of a processor's size, 0 if it does not say; a mapping or, later, an object."""
    value = size.get(name) if isinstance(size, Mapping) else getattr(size, name, None)
    return int(value or 0)


def _checked_plan(
    processor: Any, settings: _Settings, overrides: Mapping[str, Any]
) -> PatchPlan | None:
    """Return the plan by which a picture of noise comes out as it does from the processor."""
    shape = (*settings.picture_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    out = processor(
        images=[noise], return_tensors="pt", input_data_format="channels_last", **overrides
    )
    pixels = out.get("pixel_values")
    if len(out) == 1 and isinstance(pixels, Tensor):
        for rounding in ("pillow", "torchvision"):
            plan = _plan(settings, rounding)
            if torch.equal(_pixels(noise, plan), pixels):
                return plan
    _log.info("%s prepares pictures of %d x %d itself", type(processor).__name__, *shape[:2])
    return None


def _plan(settings: _Settings, rounding: str) -> PatchPlan:
    plan = patch_plan(
        settings.picture_size,
        settings.size,
        settings.crop,
        mean=settings.mean,
        std=settings.std,
        scale=settings.scale,
        resample=settings.resample,
        rounding=rounding,
    )
    rows, columns = (
        slice((whole - part) // 2, (whole - part) // 2 + part)
        for whole, part in zip(settings.size, settings.crop, strict=True)
    )
    return plan._replace(rows=plan.rows[rows], columns=plan.columns[columns])


def _pixels(picture: npt.NDArray[np.uint8], plan: PatchPlan) -> Tensor:
    """With the whole picture as the one patch; one at a time, as stacking them would copy them."""
    readable = torch.from_numpy(np.require(picture, requirements=("C", "W")))
    patches = frames_to_patches(readable[None], *plan, backend="native")
    return patches.view(-1, 3, plan.patch_height, plan.patch_width)
