# SPDX-License-Identifier: Apache-2.0
"""Blocks: the place of a frame in the stream, and its length among others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from stc_video.memory.base import Frame
from stc_video.memory.window import Block


@dataclass(frozen=True)
class Asked:
    """The blocks that there were to answer a question from when it came.

    Attributes
    ----------
    blocks
        In temporal order.
    scores
        Of another scorer, one for each, or None.
    budget
        How many of their tokens are taken, in each layer.
    forgotten
        How often the memory had forgotten.
    """

    blocks: list[Block]
    scores: Tensor | None
    budget: int
    forgotten: int


def start_of(frame: Frame, free: int) -> tuple[int, int]:
    """Position (time) of a frame, and what its rows and columns are counted from."""
    place = frame.place
    return (free, free) if place is None else (free + place.time, free + place.origin)


def block_of(frame: Frame, start: int, origin: int) -> Block:
    """Describe a frame at its start and origin."""
    span, side = (frame.span, 0) if frame.place is None else (frame.place.step, frame.place.side)
    size = len(frame.embeds)
    return Block(frame.number, frame.time, start, span, size, origin=origin, side=side)


def length_of(blocks: Sequence[Block], spans: Sequence[int]) -> int:
    """Number of positions of blocks in a row; text goes on behind the largest."""
    length = sum(spans)
    if blocks and blocks[-1].side:
        length += 1 - spans[-1]  # the time of the last one, and not that of the next
    return max([length, *(block.side for block in blocks)])
