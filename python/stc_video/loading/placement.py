# SPDX-License-Identifier: Apache-2.0
"""Choice of the device and the dtype of a model."""

from __future__ import annotations

import torch
from torch import nn

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class ModelError(ValueError):
    """A model that cannot be loaded; the message says why in one sentence."""


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of this name.

    Raises
    ------
    ModelError
        If torch does not know it or it is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"device {device!r} is not known to torch") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {str(found)!r}: torch {torch.__version__} sees no CUDA device")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {str(found)!r}: there are {torch.cuda.device_count()} devices")
    return found


def find_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the type of this name; "auto" is bfloat16 on CUDA and float32 elsewhere.

    Raises
    ------
    ValueError
        If there is no such name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be auto, {', '.join(_DTYPES)}; got {dtype!r}")
    return _DTYPES[dtype]


def cast_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights of a model a type, as ``from_pretrained(dtype=...)`` does.

    Buffers keep theirs: the frequencies of rotary positions are float32, and rounded ones turn by
    other angles, the further the larger the position is.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
