# SPDX-License-Identifier: Apache-2.0
"""Validation shared by the operators. Each message says what, what is allowed, and what it got."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
INDEX_DTYPES = (torch.int32, torch.int64)
#: tokens are fewer: their places are int32 in every result
TOKEN_LIMIT = 2**31


def integer(op: str, name: str, value: Any) -> int:
    """Return what Python takes for an integer as one; raise on anything else."""
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return value  # type: ignore[return-value]
    try:
        return int(operator.index(value))  # no bool, which torch does not take for a size
    except (TypeError, RuntimeError):
        raise TypeError(f"`{op}`: {name} must be an integer, got {_kind(value)}") from None


def number(op: str, name: str, value: Any) -> float:
    """Return a number as a float; raise on anything else, and on what no float can hold."""
    if isinstance(value, float):
        return value
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"`{op}`: {name} must fit into a float") from None
        except (TypeError, ValueError, RuntimeError):
            pass
    raise TypeError(f"`{op}`: {name} must be a number, got {_kind(value)}")


def check_dense(op: str, name: str, tensor: Any) -> None:
    """Raise unless an argument is a tensor whose elements lie at strides."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"`{op}`: {name} must be a tensor, got {_kind(tensor)}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
        raise TypeError(f"`{op}`: {name} must be a dense tensor, got one of layout {layout}")


def check_float(op: str, name: str, tensor: Tensor, *ranks: int) -> None:
    """Raise unless ``tensor`` has a supported floating dtype and one of ``ranks`` dimensions."""
    check_dense(op, name, tensor)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"`{op}`: {name} must be float32, float16 or bfloat16, got {_dtype(tensor)}"
        )
    _check_rank(op, name, tensor, ranks)


def check_indices(op: str, indices: Tensor, batch: int, tokens: int) -> None:
    """Raise unless ``indices`` are (batch, K) integers and can name all of the ``tokens``."""
    check_dense(op, "indices", indices)
    if indices.dtype not in INDEX_DTYPES:
        raise TypeError(f"`{op}`: indices must be int32 or int64, got {_dtype(indices)}")
    _check_rank(op, "indices", indices, (2,))
    if indices.shape[0] != batch:
        raise ValueError(
            f"`{op}`: indices must have as many rows as the batch ({batch}), got {indices.shape[0]}"
        )
    check_tokens(op, tokens)


def check_tokens(op: str, tokens: int) -> None:
    """Raise unless the places of so many tokens fit into int32."""
    if tokens >= TOKEN_LIMIT:
        raise ValueError(f"`{op}`: tokens must be fewer than 2**31, got {tokens}")


def check_mask(
    op: str, name: str, mask: Tensor, other_name: str, other: Tensor, shape: tuple[int, ...]
) -> None:
    """Raise unless ``mask`` is bool, on the device of ``other``, and of a shape."""
    check_dense(op, name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"`{op}`: {name} must be a bool mask, got {_dtype(mask)}")
    check_device(op, name, mask, other_name, other)
    check_shape(op, name, mask, shape)


def check_same(op: str, name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors share dtype and device."""
    check_dense(op, name, tensor)
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


def check_channels(op: str, name: str, parameter: Tensor | None, of_name: str, of: Tensor) -> None:
    """Raise unless a parameter per channel is None or fits."""
    if parameter is not None:
        check_float(op, name, parameter, 1)
        check_device(op, name, parameter, of_name, of)
        check_shape(op, name, parameter, (of.shape[-1],))


def check_eps(op: str, eps: float) -> None:
    """Raise unless a number can be added to a variance."""
    if not eps >= 0:
        raise ValueError(f"`{op}`: eps must be at least 0, got {eps}")


def check_pair(op: str, current: Tensor, reference: Tensor) -> None:
    """Raise unless ``current`` (B, N, C) can be compared with ``reference``."""
    check_float(op, "current", current, 3)
    check_float(op, "reference", reference, 2, 3)
    check_same(op, "reference", reference, "current", current)
    batch, tokens, channels = current.shape
    check_shape(op, "reference", reference, (batch, tokens, channels), (tokens, channels))
    check_tokens(op, tokens)


def check_index_values(op: str, indices: Tensor, tokens: int) -> None:
    """Raise on an index outside [-1, tokens), where that costs no device synchronisation."""
    if not indices.is_cpu or indices.numel() == 0:
        return
    for axis in range(indices.dim()):
        if indices.stride(axis) == 0:  # an expanded one says the same again and again
            indices = indices.narrow(axis, 0, 1)
    low, high = (int(value) for value in torch.aminmax(indices))
    if low < -1 or high >= tokens:
        wrong = low if low < -1 else high
        raise ValueError(
            f"`{op}`: indices must be between 0 and {tokens - 1} (tokens), or -1, got {wrong}"
        )


def as_int32(indices: Tensor, tokens: int) -> Tensor:
    """Indices as int32; one outside [-1, tokens) stays outside, or becomes -1 if below."""
    return indices if indices.dtype == torch.int32 else indices.clamp(-1, tokens).int()


def truth(mask: Tensor) -> Tensor:
    """A mask whose bytes are all 0 or 1: any but 0 counts as true."""
    return mask.view(torch.uint8) != 0


def _check_rank(op: str, name: str, tensor: Tensor, ranks: tuple[int, ...]) -> None:
    if tensor.dim() not in ranks:
        allowed = " or ".join(str(rank) for rank in ranks)
        raise ValueError(
            f"`{op}`: {name} must have {allowed} dimensions, "
            f"got {tensor.dim()} (shape {tuple(tensor.shape)})"
        )


def _kind(value: object) -> str:
    return type(value).__name__


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
