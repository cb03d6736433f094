# SPDX-License-Identifier: Apache-2.0
"""Conversion of pictures from cameras and decoders to the input of a tower."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Iterable, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_video.errors import StreamWarning
from stc_video.models.preprocess import Preprocessor

#: a PIL image, a PyAV frame, a NumPy array, a tensor, or a sequence of these
FrameLike: TypeAlias = Any
#: seconds as a number of any type, or a time span; one, several, or none
TimeLike: TypeAlias = Any
_Picture: TypeAlias = npt.NDArray[np.uint8]

_ORIENTATION = 0x0112  # of Exif
_CHANNELS = (1, 3, 4)  # grey, RGB, RGB with alpha
_DTYPES = "uint8, uint16, bool, or float between 0 and 1"


def to_pixels(frames: FrameLike, preprocessor: Preprocessor, size: int) -> Tensor:
    """Prepare frames for the tower.

    Parameters
    ----------
    frames
        One frame or several, as for :func:`pictures_of`; a float tensor (F, 3, size, size) or
        (3, size, size) is taken as prepared already.
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
        If it is of another shape, its values are out of range, or there is none.
    """
    if is_prepared(frames, (3, size, size)):
        batch: Tensor = frames.reshape(-1, 3, size, size)
        return batch
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


def is_prepared(frames: FrameLike, shape: tuple[int, ...]) -> bool:
    """Tell whether frames are a float tensor of the tower's input: (F, ...) or one."""
    if not isinstance(frames, Tensor) or not frames.is_floating_point() or not len(frames):
        return False
    return frames.dim() - len(shape) in (0, 1) and tuple(frames.shape[-len(shape) :]) == shape


def warn_if_unprepared(frames: FrameLike, size: int) -> None:
    """Warn if a float tensor that passes for prepared pixels looks like a picture between 0 and 1.

    Only what was normalised has values below 0, unless it is bright all over.
    """
    if not is_prepared(frames, (3, size, size)):
        return
    low, high = (float(bound) for bound in frames.detach().aminmax())
    if low >= 0.0 and high <= 1.0:
        warnings.warn(
            f"push: a float tensor of the tower's size, {size} x {size}, is taken as normalised "
            "pixels, but all its values are between 0 and 1; give a picture as uint8 or an array",
            StreamWarning,
            stacklevel=2,
        )


def to_times(timestamps: TimeLike, frames: int) -> list[float | None]:
    """Return one time, or None, for each frame.

    Parameters
    ----------
    timestamps
        Seconds as numbers of any type (of Python, NumPy or torch), or time spans; one for each
        frame, or one for a single frame; or None.
    frames
        How many there are.

    Raises
    ------
    TypeError
        If one is no number.
    ValueError
        If one is not finite, or there are not as many as frames.
    """
    if timestamps is None:
        return [None] * frames
    if isinstance(timestamps, Tensor):
        timestamps = timestamps.tolist()
    alone = isinstance(timestamps, (str, bytes)) or not isinstance(timestamps, Iterable)
    if alone or getattr(timestamps, "ndim", 1) == 0:
        timestamps = [timestamps]
    times = list(timestamps)
    if len(times) != frames:
        raise ValueError(
            f"push: timestamps must be one for each of {frames} frames, got {len(times)}"
        )
    return [_seconds(time) for time in times]


def _seconds(time: Any) -> float:
    shown = repr(time)
    if isinstance(time, np.ndarray) and time.ndim == 0:
        time = time[()]
    if isinstance(time, np.timedelta64):
        time = time / np.timedelta64(1, "s")
    elif isinstance(time, timedelta):
        time = time.total_seconds()
    elif isinstance(time, Tensor) and time.dim() == 0:
        time = time.item()
    if isinstance(time, (bool, np.datetime64)) or not isinstance(time, (numbers.Real, Decimal)):
        raise TypeError(f"push: a timestamp must be a number of seconds, got {shown}")
    try:
        seconds = float(time)
    except (OverflowError, ValueError):  # a huge integer, a signalling NaN
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(f"push: a timestamp must be a finite number of seconds, got {shown}")
    return seconds


def pictures_of(frames: FrameLike) -> list[_Picture]:
    """Take frames apart into RGB pictures.

    Parameters
    ----------
    frames
        PIL images of any mode that has a meaning without further knowledge; PyAV frames; NumPy
        arrays (H, W), (H, W, C) or (F, H, W, C); tensors (H, W), (C, H, W) or (F, C, H, W), each
        also with the channels at the other end where that can be told; or a sequence of these.
        C is 1 (grey), 3 (RGB) or 4 (RGB with alpha, which is left out). Values are uint8; uint16,
        of which the upper eight bits are taken; bool; or float between 0 and 1.

    Returns
    -------
    list of ndarray
        (H, W, 3) uint8, RGB, upright.

    Raises
    ------
    TypeError
        If a frame, or the type of its values, is none of these.
    ValueError
        If its shape is none of these, or a float is below 0, above 1, or no number.
    """
    if isinstance(frames, Tensor):
        return _of_array(_numpy(frames), channels_first=True)
    if isinstance(frames, np.ndarray):
        return _of_array(frames, channels_first=False)
    if hasattr(frames, "convert") and hasattr(frames, "getexif"):
        return [rgb_picture(frames)]
    if type(frames).__module__.startswith("av.") and hasattr(frames, "to_ndarray"):
        return [_of_decoded(frames)]
    if isinstance(frames, Sequence) and not isinstance(frames, (str, bytes)):
        return [picture for frame in frames for picture in pictures_of(frame)]
    raise TypeError(
        "push: frames must be PIL images, PyAV frames, NumPy arrays or tensors, got "
        f"{type(frames).__name__}"
    )


def rgb_picture(image: Any) -> _Picture:
    """Turn a PIL image into (H, W, 3) uint8, RGB, upright as its Exif data say.

    Sixteen-bit grey is scaled to eight bits, where PIL would cut it off at 255.

    Raises
    ------
    ValueError
        If its mode cannot be turned into RGB, or says nothing of the range of its values.
    OSError, SyntaxError
        As PIL raises them, if its file is damaged.
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PNG"):
        # A 16-bit PNG has the mode I in Pillow before 11.3.
        return _of_array(np.asarray(image).astype(np.uint16), channels_first=False)[0]
    if mode == "F":
        return _of_array(np.asarray(image), channels_first=False)[0]
    if mode == "I":
        raise ValueError(
            "push: a PIL image of mode I has 32-bit values of an unknown range; give an array of "
            "uint8 or uint16"
        )
    try:
        if mode in ("La", "RGBa"):  # colours that are multiplied by alpha
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        rgb = image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"push: a PIL image of mode {mode} cannot be turned into RGB") from error
    return _of_array(np.asarray(rgb), channels_first=False)[0]


def _of_decoded(frame: Any) -> _Picture:
    """The picture of a PyAV frame."""
    from av.video.frame import VideoFrame

    from stc_video.video.picture import rgb_of

    if not isinstance(frame, VideoFrame):
        raise TypeError(f"push: a PyAV frame must be of video, got {type(frame).__name__}")
    picture: _Picture = rgb_of(frame)
    return picture


def _numpy(frames: Tensor) -> npt.NDArray[Any]:
    frames = frames.detach()
    if frames.is_floating_point():
        frames = frames.float()  # NumPy has no bfloat16
    array: npt.NDArray[Any] = frames.cpu().numpy()
    return array


def _of_array(array: npt.NDArray[Any], *, channels_first: bool) -> list[_Picture]:
    """Take an array (H, W), (H, W, C), (C, H, W) or a batch of the latter apart."""
    if array.dtype.kind not in "buf" or (array.dtype.kind == "u" and array.dtype.itemsize > 2):
        raise TypeError(f"push: values of a frame must be {_DTYPES}, got {array.dtype}")
    shape = array.shape
    batch = array[None] if array.ndim == 3 else array
    if array.ndim == 2:
        batch = array[None, ..., None]
    elif array.ndim in (3, 4):
        first, last = batch.shape[1] in _CHANNELS, batch.shape[3] in _CHANNELS
        if first and (channels_first or not last):
            batch = np.moveaxis(batch, 1, 3)
    if batch.ndim != 4 or batch.shape[3] not in _CHANNELS or 0 in shape:
        raise ValueError(
            "push: a frame must have at least one pixel and be (H, W), (H, W, C) or (C, H, W) with "
            f"C of 1, 3 or 4, or (F, H, W, C) or (F, C, H, W), got shape {shape}"
        )
    bytes_ = _to_bytes(batch[..., :3])
    if bytes_.shape[3] == 1:
        bytes_ = np.repeat(bytes_, 3, axis=3)
    # torch takes no array that runs backwards.
    return list(bytes_.copy() if min(bytes_.strides) < 0 else bytes_)


def _to_bytes(values: npt.NDArray[Any]) -> _Picture:
    """Scale values to eight bits."""
    scaled: _Picture = values
    if values.dtype.kind == "b":
        scaled = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype.kind == "u" and values.dtype != np.uint8:
        scaled = (values >> 8).astype(np.uint8)
    elif values.dtype.kind == "f":
        low, high = float(values.min()), float(values.max())
        if not (low >= 0.0 and high <= 1.0):  # also for NaN
            raise ValueError(
                f"push: floats of a frame must be between 0 and 1, got {low:g} to {high:g}; divide "
                "by 255 or give uint8; prepared pixels must have the tower's size"
            )
        scaled = (values * 255.0 + 0.5).astype(np.uint8)
    return scaled
