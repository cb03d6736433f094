# SPDX-License-Identifier: Apache-2.0
"""What small changes that nobody minds do to dense features: a measure for every other error."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_video.loading.vision import LoadedModel

Picture = npt.NDArray[np.uint8]

#: one frame in so many is changed
FLOOR_EVERY = 8

_BFLOAT16 = "bfloat16"


def _moved(picture: Picture) -> Picture:
    """Move by one pixel to the right; the left rim is doubled."""
    return np.concatenate([picture[:, :1], picture[:, :-1]], axis=1)


def _jpeg(picture: Picture) -> Picture:
    """Write and read as JPEG of quality 90."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file).convert("RGB"))


def _noisy(picture: Picture) -> Picture:
    """Add noise with a deviation of 2 % of white."""
    noise = np.random.default_rng(0).normal(0.0, 0.02 * 255, picture.shape)
    made: Picture = (picture + noise).round().clip(0, 255).astype(np.uint8)
    return made


_CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "one pixel": _moved,
    "JPEG 90": _jpeg,
    "2 % noise": _noisy,
}
#: names, in the order in which they are shown
FLOORS = (*_CHANGES, _BFLOAT16)


def measure_floors(picture: Picture, model: LoadedModel, dense: Tensor) -> dict[str, float]:
    """Encode a picture with each change.

    Parameters
    ----------
    picture
        (H, W, 3).
    model
        The tower, without a cacher.
    dense
        (1, T, D), its tokens without a change.

    Returns
    -------
    dict
        Name of `FLOORS` -> 1 - cosine, mean over the tokens.
    """
    found = {name: _error(model.encode(model.pixels([change(picture)])), dense)
             for name, change in _CHANGES.items()}  # fmt: skip
    with torch.autocast(model.device.type, torch.bfloat16):
        found[_BFLOAT16] = _error(model.encode(model.pixels([picture])), dense)
    return found


def _error(tokens: Tensor, dense: Tensor) -> float:
    return 1.0 - float(torch.cosine_similarity(tokens.double(), dense.double(), dim=-1).mean())
