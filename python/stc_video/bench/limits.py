# SPDX-License-Identifier: Apache-2.0
"""Limits that times must keep: a table of what must hold, and whether it does."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path

from stc_video.bench.table import Row


@dataclass(frozen=True)
class Limit:
    """In one case, a contender may take at most so many times as long as another.

    Attributes
    ----------
    geometry, dtype, streams, ratio
        The case.
    contender, baseline
        Who is compared with whom.
    at_most
        Largest median of the ratios of their times.
    """

    geometry: str
    dtype: str
    streams: int
    ratio: float
    contender: str
    baseline: str
    at_most: float


@dataclass(frozen=True)
class Outcome:
    """A limit, and the ratio that was measured; None if it was not."""

    limit: Limit
    measured: float | None

    @property
    def holds(self) -> bool:
        """Whether it was measured and is kept."""
        return self.measured is not None and self.measured <= self.limit.at_most


def read_limits(path: Path) -> list[Limit]:
    """Read a table of limits, a CSV with the attributes of :class:`Limit` as columns.

    Raises
    ------
    ValueError
        If it is not one, or there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"--limits {path}: there is no such file")
    names = [field.name for field in fields(Limit)]
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != names:
            raise ValueError(f"--limits {path}: the columns must be {', '.join(names)}")
        try:
            return [_limit(cells) for cells in reader]
        except (TypeError, ValueError) as error:
            raise ValueError(f"--limits {path}, line {reader.line_num}: {error}") from None


def _limit(cells: dict[str, str]) -> Limit:
    return Limit(
        cells["geometry"],
        cells["dtype"],
        int(cells["streams"]),
        float(Fraction(cells["ratio"])),
        cells["contender"],
        cells["baseline"],
        float(cells["at_most"]),
    )


def judge(limits: Sequence[Limit], rows: Sequence[Row]) -> list[Outcome]:
    """Compare limits with what was measured."""
    return [Outcome(limit, _measured(limit, rows)) for limit in limits]


def _measured(limit: Limit, rows: Sequence[Row]) -> float | None:
    case = (limit.geometry, limit.dtype, limit.streams, limit.contender)
    for row in rows:
        measured = (row.geometry, row.dtype, row.streams, row.contender)
        if measured == case and abs(row.ratio - limit.ratio) < 1e-6 and row.correct:
            return row.to(limit.baseline)
    return None
