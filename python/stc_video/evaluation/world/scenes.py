# SPDX-License-Identifier: Apache-2.0
"""What is to be seen in a stream, frame by frame: shapes and a card with a sign on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

#: name -> RGB
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 80, 235),
    "yellow": (245, 220, 40),
    "purple": (150, 50, 190),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
#: a thing that has a sign instead of a colour
CARD = "card"
#: ten digits and letters that name no option
SIGNS = (*"0123456789", *"KMRTXZ")
#: quarters of the picture, row by row
PLACES = ("top left", "top right", "bottom left", "bottom right")

_MOST = 3  # things in a frame
#: chance of no, one, two and three things in a scene
_COUNTS = (0.06, 0.30, 0.38, 0.26)


@dataclass(frozen=True)
class Thing:
    """One thing in one frame.

    Attributes
    ----------
    kind
        One of `SHAPES`, or `CARD`.
    look
        Its colour; the sign of a card.
    place
        Index of `PLACES`.
    size
        Part of its quarter's side that it fills.
    shift
        Right and down from the middle of its quarter, as parts of the quarter's side.
    """

    kind: str
    look: str
    place: int
    size: float
    shift: tuple[float, float]


#: what is to be seen at one moment
Frame: TypeAlias = tuple[Thing, ...]


def looks(kind: str) -> tuple[str, ...]:
    """All looks that things of a kind can have."""
    return SIGNS if kind == CARD else tuple(COLOURS)


def make_scene(random: np.random.Generator, frames: int) -> list[Frame]:
    """Make a scene: up to three things of different kinds, which come, move, change and go.

    Parameters
    ----------
    random
        Decides everything.
    frames
        How many, one a second.
    """
    count = int(random.choice(_MOST + 1, p=_COUNTS))
    kinds = random.choice((*SHAPES, CARD), count, replace=False, p=_kind_chances())
    places = [int(place) for place in random.permutation(len(PLACES))]
    free = places[count:]
    histories = [_history(random, str(kind), places[i], free, frames)
                 for i, kind in enumerate(kinds)]  # fmt: skip
    return [tuple(h[t] for h in histories if h[t] is not None) for t in range(frames)]  # type: ignore[misc]


def _kind_chances() -> list[float]:
    """A card is as frequent as two shapes: it has more looks to learn."""
    parts = len(SHAPES) + 2
    return [1 / parts] * len(SHAPES) + [2 / parts]


def _history(
    random: np.random.Generator, kind: str, place: int, free: list[int], frames: int
) -> list[Thing | None]:
    """One thing through a scene; None where it is not there. Takes a place from `free` to move."""
    come = int(random.integers(1, frames)) if frames > 1 and random.random() < 0.3 else 0
    go = int(random.integers(come + 1, frames + 1)) if random.random() < 0.2 else frames
    shift = random.uniform(-1, 1, 2)
    size = float(random.uniform(0.6, 0.9))
    room = (0.96 - size) / 2
    thing = Thing(kind, str(random.choice(looks(kind))), place, size,
                  (float(shift[0]) * room, float(shift[1]) * room))  # fmt: skip
    made: list[Thing | None] = [None] * frames
    change = int(random.integers(come + 1, go)) if go - come > 1 else frames
    event = str(random.choice(("stay", "move", "change"), p=(0.5, 0.3, 0.2)))
    for t in range(come, go):
        if t == change and event == "move" and free:
            thing = replace(thing, place=free.pop())
        elif t == change and event == "change":
            others: Sequence[str] = [look for look in looks(kind) if look != thing.look]
            thing = replace(thing, look=str(random.choice(others)))
        made[t] = thing
    return made
