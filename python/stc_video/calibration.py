# SPDX-License-Identifier: Apache-2.0
"""Calibration of the ``motion`` policy: the similarity to a dense encode that each aim gives."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_DEFAULT = Path(__file__).with_name("calibrations") / "default.json"
_VERSION = 1


@dataclass(frozen=True)
class Aim:
    """A setting that the policy steers by.

    Attributes
    ----------
    error
        The error that a stream's own estimate is kept near.
    level
        Effort that a stream starts with, 0 to 1.
    tail
        Whether the last layers may run for all tokens when the effort is high.
    """

    error: float
    level: float
    tail: bool = True


@dataclass(frozen=True)
class Measured:
    """Measurements of an aim on the clips of a calibration.

    Attributes
    ----------
    aim
        The aim.
    similarity
        Mean cosine to a dense encode, each clip counting the same.
    worst_clip
        The lowest clip's mean cosine.
    cost
        Mean fraction of a dense encode's operations.
    """

    aim: Aim
    similarity: float
    worst_clip: float
    cost: float


@dataclass(frozen=True)
class Calibration:
    """Measurements of several aims, and what they were made with.

    ``stc calibrate`` makes one for a tower; without one, that of a trained DINOv2 ViT-S/14 is
    taken.
    """

    points: tuple[Measured, ...]
    facts: dict[str, str] = field(default_factory=dict)

    def aim(self, quality: float) -> Aim:
        """Return the cheapest aim under which the clips had a mean cosine of ``quality``.

        It is what a stream starts with; audits tell the policy what the stream needs. Where no aim
        was good enough, the best one is taken.
        """
        kept = [point for point in self.points if point.similarity >= quality]
        if kept:
            return min(kept, key=lambda point: point.cost).aim
        return max(self.points, key=lambda point: point.similarity).aim

    @property
    def best_quality(self) -> float:
        """The highest mean cosine that every clip had without a dense frame for the promise."""
        return max(point.worst_clip for point in self.points)

    def fits(self, layers: int, width: int) -> bool:
        """Whether it was measured with a tower of so many layers and channels."""
        return f"{layers} layers, {width} wide" in self.facts.get("geometry", "")

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        points = [asdict(point) for point in self.points]
        content = {"version": _VERSION, "facts": self.facts, "points": points}
        Path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ValueError
            If the file is not there or is no calibration.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"calibration {path} cannot be read: {error}") from error
        try:
            if content["version"] != _VERSION:
                raise ValueError(
                    f"calibration {path}: version must be {_VERSION}, got {content['version']!r}"
                )
            points = tuple(_measured(point) for point in content["points"])
            if not points:
                raise ValueError(f"calibration {path} has no points")
            return cls(points, dict(content["facts"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"calibration {path} is not one of `stc calibrate`") from error


@cache
def default_calibration() -> Calibration:
    """Return what was measured with a trained DINOv2 ViT-S/14 on seven clips."""
    return Calibration.load(_DEFAULT)


def _measured(point: dict[str, Any]) -> Measured:
    given = point["aim"]
    aim = Aim(float(given["error"]), float(given["level"]), bool(given["tail"]))
    rest = (float(point[name]) for name in ("similarity", "worst_clip", "cost"))
    return Measured(aim, *rest)
