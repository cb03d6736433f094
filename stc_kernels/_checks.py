# SPDX-License-Identifier: Apache-2.0
"""Validation shared by the operators. Each message says what, what is allowed, and what it got."""

from __future__ import annotations

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)


def check_float(op: str, name: str, tensor: Tensor, *ranks: int) -> None:
    """Raise unless ``tensor`` has a supported floating dtype and one of ``ranks`` dimensions."""
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"`{op}`: {name} must be float32, float16 or bfloat16, got {_dtype(tensor)}"
        )
    _check_rank(op, name, tensor, ranks)


def check_indices(op: str, indices: Tensor, batch: int) -> None:
    """Raise unless ``indices`` are (batch, K) integers."""
    if indices.dtype not in INDEX_DTYPES:
        raise TypeError(f"`{op}`: indices must be int32 or int64, got {_dtype(indices)}")
    _check_rank(op, "indices", indices, (2,))
    if indices.shape[0] != batch:
        raise ValueError(
            f"`{op}`: indices must have as many rows as the batch ({batch}), got {indices.shape[0]}"
        )


def check_same(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors share dtype and device."""
    if tensor.dtype != other.dtype:
        raise TypeError(
            f"`{op}`: {name} must have the dtype of {other_name} ({_dtype(other)}), "
            f"got {_dtype(tensor)}"
        )
    check_device(op, name, tensor, other_name, other)


def check_device(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors are on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"`{op}`: {name} must be on the device of {other_name} ({other.device}), "
            f"got {tensor.device}"
        )


def check_shape(op: str, name: str, tensor: Tensor, *shapes: tuple[int, ...]) -> None:
    """Raise unless the shape of ``tensor`` is one of ``shapes``."""
    if tuple(tensor.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"`{op}`: {name} must have shape {allowed}, got {tuple(tensor.shape)}")


def check_range(op: str, name: str, value: int, low: int, high: int, unit: str) -> None:
    """Raise unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"`{op}`: {name} must be between {low} and {high} ({unit}), got {value}")


def check_pair(op: str, current: Tensor, reference: Tensor) -> None:
    """Raise unless ``current`` (B, N, C) can be compared with ``reference``."""
    check_float(op, "current", current, 3)
    check_float(op, "reference", reference, 2, 3)
    check_same(op, "reference", reference, "current", current)
    batch, tokens, channels = current.shape
    check_shape(op, "reference", reference, (batch, tokens, channels), (tokens, channels))


def check_index_values(op: str, indices: Tensor, tokens: int) -> None:
    """Raise on an index outside [-1, tokens), where that costs no device synchronisation."""
    if indices.device.type != "cpu" or indices.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(indices))
    if low < -1 or high >= tokens:
        wrong = low if low < -1 else high
        raise ValueError(
            f"`{op}`: indices must be between 0 and {tokens - 1} (tokens), or -1, got {wrong}"
        )


def _check_rank(op: str, name: str, tensor: Tensor, ranks: tuple[int, ...]) -> None:
    if tensor.dim() not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise ValueError(
            f"`{op}`: {name} must have {allowed} dimensions, "
            f"got {tensor.dim()} (shape {tuple(tensor.shape)})"
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
