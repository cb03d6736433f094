# SPDX-License-Identifier: Apache-2.0
"""Draws the things of a frame onto a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from stc_video.evaluation.world.scenes import CARD, COLOURS, Frame, Thing

if TYPE_CHECKING:
    from PIL.Image import Image

Points = list[tuple[float, float]]

_RIM = (40, 40, 40)


def draw_things(picture: Image, frame: Frame, shift: tuple[int, int] = (0, 0)) -> None:
    """Draw all things of a frame, moved by so many pixels right and down."""
    from PIL import ImageDraw

    pen = ImageDraw.Draw(picture)
    quarter = picture.width / 2
    for thing in frame:
        row, column = divmod(thing.place, 2)
        x = (column + 0.5 + thing.shift[0]) * quarter + shift[0]
        y = (row + 0.5 + thing.shift[1]) * quarter + shift[1]
        _draw(pen, thing, x, y, thing.size * quarter / 2)


def draw_clock(picture: Image, seconds: float) -> None:
    """Write minutes and seconds at the upper rim."""
    from PIL import ImageDraw

    text = f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"
    pen, middle = ImageDraw.Draw(picture), picture.width // 2
    pen.rectangle((middle - 22, 0, middle + 22, 15), fill=(0, 0, 0))
    pen.text((middle, 8), text, fill=(255, 255, 255), font=_font(13), anchor="mm")


def _draw(pen: Any, thing: Thing, x: float, y: float, radius: float) -> None:
    if thing.kind == CARD:
        box = (x - radius * 0.8, y - radius, x + radius * 0.8, y + radius)
        pen.rounded_rectangle(box, radius=radius / 5, fill=(255, 250, 235), outline=_RIM, width=3)
        pen.text((x, y), thing.look, fill=_RIM, font=_font(round(radius * 1.8)), anchor="mm")
    elif thing.kind == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=COLOURS[thing.look], outline=_RIM, width=3)
    else:
        points = [(x + a * radius, y + b * radius) for a, b in _outline(thing.kind)]
        pen.polygon(points, fill=COLOURS[thing.look], outline=_RIM, width=3)


@cache
def _outline(shape: str) -> Sequence[tuple[float, float]]:
    """Corners of a shape in a square from -1 to 1, y downwards."""
    if shape == "square":
        return [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        quarter = [(0.33, -1.0), (0.33, -0.33), (1.0, -0.33)]
        return [_turned(point, turn) for turn in range(4) for point in quarter]
    if shape == "star":
        angles = [math.pi * (number / 5 - 0.5) for number in range(10)]
        lengths = [1.0, 0.42] * 5
        return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, lengths, strict=True)]
    steps = [2 * math.pi * number / 40 for number in range(40)]
    return [(math.sin(t) ** 3, -_heart_height(t) / 17) for t in steps]


def _heart_height(t: float) -> float:
    return 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)


def _turned(point: tuple[float, float], quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        point = -point[1], point[0]
    return point


@cache
def _font(size: int) -> Any:
    """The typeface that Pillow ships."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
