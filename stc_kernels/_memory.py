# SPDX-License-Identifier: Apache-2.0
"""Checks of the memory that the tensors of a call reach and share, for every backend.

The compiled library checks again what would make it read or write out of bounds, since it can be
called without this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: elements of a tensor: more than any memory holds
MOST_ELEMENTS = 2**40
#: the same where it is empty and needs no memory, sizes of 0 counted as 1
MOST_OF_EMPTY = 2**31
#: steps after which the search for a shared element gives up and calls it shared
_MOST_STEPS = 10_000


def check_storage(op: str, name: str, tensor: Tensor) -> None:
    """Raise unless all that the shape and strides of a tensor reach lies within its storage."""
    shape = tensor.shape
    most = MOST_OF_EMPTY if 0 in shape else MOST_ELEMENTS
    if math.prod(size or 1 for size in shape) > most:
        raise ValueError(
            f"`{op}`: {name} must have at most 2**40 elements, or 2**31 with sizes of 0 counted "
            f"as 1, got shape {tuple(shape)}"
        )
    if 0 in shape or tensor.is_meta:
        return
    try:
        held = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # under vmap: the tensors within are checked later
        return
    item, start = tensor.element_size(), tensor.data_ptr()
    if start == 0 or tensor.storage_offset() * item + _extent(tensor) > held:
        raise ValueError(f"`{op}`: {name} must lie within its storage, got one of {held} bytes")
    if start % item:
        raise ValueError(f"`{op}`: {name} must start at a multiple of its {item} bytes per element")


def check_written(op: str, names: Sequence[str], values: Sequence[Any], written: int) -> None:
    """Raise unless the first ``written`` values can be written to one element at a time.

    Parameters
    ----------
    op
        Name of the operator.
    names, values
        The arguments; those that are tensors must not share an element with what is written.
    written
        How many of the first arguments the operator writes to.
    """
    for place in range(written):
        name, target = names[place], values[place]
        if target.is_meta or target.numel() == 0:
            continue
        if target.is_contiguous():
            start, extent = target.data_ptr(), target.nbytes
        else:
            _check_layout(op, name, target)
            start, extent = target.data_ptr(), _extent(target)
        if target.is_inference() and not torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"`{op}`: {name} was made under torch.inference_mode() and can only be written "
                "to there"
            )
        for other in range(place + 1, len(values)):
            value = values[other]
            # Most begin behind the target or end before it, and nothing else is asked of them.
            if not isinstance(value, Tensor) or value.data_ptr() >= start + extent:
                continue
            if value.numel() and value.data_ptr() + _extent(value) > start:
                _check_apart(op, names[other], value, name, target)


def _check_layout(op: str, name: str, target: Tensor) -> None:
    """Raise if two places of a tensor may be one element: unless a stride passes what is inside.

    Each does so in slices and transposes of a tensor without overlap.
    """
    inside = 0
    for stride, size in sorted(zip(target.stride(), target.shape, strict=True)):
        if size > 1 and stride <= inside:
            raise ValueError(
                f"`{op}`: {name} must not overlap itself, as expanded tensors do, got shape "
                f"{tuple(target.shape)} with strides {target.stride()}"
            )
        inside += (size - 1) * stride


def _check_apart(op: str, name: str, value: Tensor, target_name: str, target: Tensor) -> None:
    if _share_an_element(target, value):
        raise ValueError(
            f"`{op}`: {name} must not share memory with {target_name}, which is written to: "
            "clone it first"
        )


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to the last element, both included; there must be one."""
    if tensor.is_contiguous():
        return tensor.nbytes
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (1 + sum((size - 1) * stride for size, stride in steps)) * tensor.element_size()


def _share_an_element(a: Tensor, b: Tensor) -> bool:
    """Whether any byte belongs to both; also where the search takes too long.

    A byte of a lies at ``start + sum(i * stride)``, one of b likewise. With the places of b counted
    from its end, both are the same if a sum of steps forwards gives the distance from the start of
    a to the end of b: a knapsack, in which each stride may be taken up to so many times.
    """
    most: dict[int, int] = {1: a.element_size() + b.element_size() - 2}
    for tensor in (a, b):
        item = tensor.element_size()
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
            most[stride * item] = most.get(stride * item, 0) + size - 1
    most.pop(0, None)
    steps = sorted(most.items(), reverse=True)
    left = [0]  # what the strides from each on reach together
    for stride, times in reversed(steps):
        left.append(left[-1] + stride * times)
    left.reverse()
    open_sums = [(0, b.data_ptr() + _extent(b) - 1 - a.data_ptr())]
    for _ in range(_MOST_STEPS):
        if not open_sums:
            return False
        position, rest = open_sums.pop()
        if rest == 0:
            return True
        if position == len(steps) or not 0 < rest <= left[position]:
            continue
        stride, times = steps[position]
        fewest = max(0, -(-(rest - left[position + 1]) // stride))
        highest = min(times, rest // stride)
        if highest - fewest >= _MOST_STEPS:
            return True
        open_sums += [(position + 1, rest - n * stride) for n in range(fewest, highest + 1)]
    return True
