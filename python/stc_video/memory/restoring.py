# SPDX-License-Identifier: Apache-2.0
"""Whether the numbers and tensors of a snapshot can be those of a memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from stc_video.memory.base import Snapshot
from stc_video.memory.window import Block

_LOWEST = {"start": 0, "span": 0, "tokens": 1, "slot": -1, "stands_for": 1, "origin": 0, "side": 0}


def check_fields(values: dict[str, Any], names: Collection[str]) -> None:
    """Refuse missing and unknown fields."""
    if values.keys() != set(names):
        raise ValueError(f"memory must have {', '.join(names)}, got {', '.join(values)}")


def check_counts(values: dict[str, Any], *names: str) -> None:
    """Refuse what is no whole number from 0."""
    for name in names:
        if not _is_count(values[name]):
            raise ValueError(f"memory: {name} must be a whole number from 0, got {values[name]!r}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int | None]) -> None:
    """Refuse a tensor of another shape; None stands for any size."""
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(
        size not in (None, its) for size, its in zip(shape, found, strict=True)
    ):
        allowed = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"tensor {name} must be ({allowed}), got {found}")


def checked_blocks(snapshot: Snapshot) -> list[Block]:
    """Make the blocks of a memory with retrieval, and see that each is in one place.

    Raises
    ------
    ValueError
        If a number is out of range, or window, stores, records and index do not hold them.
    """
    values, tensors = snapshot.values, snapshot.tensors
    blocks = [Block(**entry) for entry in values["blocks"]]
    for block in blocks:
        for name, lowest in _LOWEST.items():
            found = getattr(block, name)
            if not _is_count(found, lowest):
                raise ValueError(f"{name} of a block must be from {lowest}, got {found!r}")
        time = block.time
        if time is not None and not (isinstance(time, (int, float)) and math.isfinite(time)):
            raise ValueError(f"time of a block must be a finite number or null, got {time!r}")
    numbers = [block.number for block in blocks]
    if not all(map(_is_count, numbers)) or sorted(set(numbers)) != numbers:
        raise ValueError("numbers of blocks must grow from 0")
    stored = sorted(number for held in values["stores"].values() for number in held)
    if stored != [block.number for block in blocks if block.slot < 0]:
        raise ValueError("the stores must hold each block that is not in the window, once")
    if stored != sorted(snapshot.records):
        raise ValueError("there must be a record of each block in the stores, and no other")
    inside = sum(block.tokens for block in blocks if block.slot >= 0)
    if tensors["window"].shape[3] != inside or tensors["index"].shape[1] != len(blocks):
        raise ValueError(
            f"window and index must hold {inside} tokens and {len(blocks)} blocks, got "
            f"{tensors['window'].shape[3]} and {tensors['index'].shape[1]}"
        )
    known = set(numbers)
    for number, likeness, other in values["nearest"]:
        if number not in known or not _is_count(other) or not math.isfinite(likeness):
            raise ValueError(f"nearest must be of blocks, got {[number, likeness, other]}")
    return blocks


def _is_count(value: object, lowest: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= lowest
