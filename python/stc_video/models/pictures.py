# SPDX-License-Identifier: Apache-2.0
"""From whatever a camera or a decoder hands over to the tower's input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_video.models.preprocess import Preprocessor

__all__ = ["FrameLike", "pictures_of", "to_pixels", "to_times"]

#: a PIL image, a NumPy array, a tensor, or a sequence of these
FrameLike: TypeAlias = Any
_Picture: TypeAlias = npt.NDArray[np.uint8]


def to_pixels(frames: FrameLike, preprocessor: Preprocessor, size: int) -> Tensor:
    """Prepare frames for the tower.

    Parameters
    ----------
    frames
        One frame or several: PIL images; NumPy arrays (H, W, 3) or (F, H, W, 3) uint8 RGB;
        tensors (3, H, W) or (F, 3, H, W) uint8 RGB; or float tensors of that shape with H and W
        the tower's size, which are taken as prepared already.
    preprocessor
        Resizes and normalises.
    size
        Height and width of the tower's input.

    Returns
    -------
    Tensor
        (F, 3, size, size) float32.

    Raises
    ------
    TypeError
        If a frame is of another type.
    ValueError
        If it is of another shape, or there is none.
    """
    if isinstance(frames, Tensor) and frames.is_floating_point():
        return _prepared(frames, size)
    pictures = pictures_of(frames)
    if not pictures:
        raise ValueError("push: frames must be one or more frames, got none")
    parts, run = [], [pictures[0]]
    for picture in pictures[1:]:
        if picture.shape != run[-1].shape:
            parts.append(run)
            run = []
        run.append(picture)
    parts.append(run)
    return torch.cat([preprocessor(part)["pixel_values"] for part in parts])


def to_times(timestamps: Sequence[float] | float | None, frames: int) -> list[float | None]:
    """Return one time, or None, for each frame."""
    if timestamps is None:
        return [None] * frames
    times = [timestamps] if isinstance(timestamps, (int, float)) else list(timestamps)
    if len(times) != frames:
        raise ValueError(
            f"push: timestamps must be one for each of {frames} frames, got {len(times)}"
        )
    return [float(time) for time in times]


def _prepared(frames: Tensor, size: int) -> Tensor:
    batch = frames[None] if frames.dim() == 3 else frames
    if batch.dim() != 4 or batch.shape[1:] != (3, size, size) or not len(batch):
        raise ValueError(
            f"push: float frames are prepared pixels and must be (F, 3, {size}, {size}) or "
            f"(3, {size}, {size}), got shape {tuple(frames.shape)}"
        )
    return batch


def pictures_of(frames: FrameLike) -> list[_Picture]:
    """Take frames apart into (H, W, 3) arrays; raises as :func:`to_pixels`."""
    if isinstance(frames, Tensor):
        if frames.dtype != torch.uint8:
            raise TypeError(f"push: a frame must be uint8 or prepared float, got {frames.dtype}")
        if frames.dim() not in (3, 4) or frames.shape[-3] != 3:
            raise ValueError(
                "push: a uint8 tensor must be (3, H, W) or (F, 3, H, W), "
                f"got shape {tuple(frames.shape)}"
            )
        return pictures_of(frames.movedim(-3, -1).cpu().numpy())
    if isinstance(frames, np.ndarray):
        if frames.dtype != np.uint8:
            raise TypeError(f"push: a frame must be uint8, got {frames.dtype}")
        if frames.ndim not in (3, 4) or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(
                "push: an array must be (H, W, 3) or (F, H, W, 3) with at least one pixel, "
                f"got shape {frames.shape}"
            )
        return list(frames) if frames.ndim == 4 else [frames]
    if hasattr(frames, "convert") and hasattr(frames, "size"):
        return [np.asarray(frames.convert("RGB"))]
    if isinstance(frames, Sequence) and not isinstance(frames, (str, bytes)):
        return [picture for frame in frames for picture in pictures_of(frame)]
    raise TypeError(
        f"push: frames must be PIL images, NumPy arrays or tensors, got {type(frames).__name__}"
    )
