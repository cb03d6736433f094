# SPDX-License-Identifier: Apache-2.0
"""The results: a row per contender of a case, and what could not be measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from stc_video.report.csv_table import write_csv
from stc_video.report.page import atomic, finite


@dataclass(frozen=True)
class Row:
    """One contender in one case. Times are of one call, which encodes a frame of every stream.

    Attributes
    ----------
    geometry, layers, width, tokens, dtype
        The tower; its weights are random.
    streams
        Streams of a call.
    ratio
        The part of the tokens that a cached frame re-encodes.
    rows
        That many tokens, class token and registers among them; all of them for a dense contender.
    contender
        Its name.
    correct
        Whether it passed the check; if not, it was not timed.
    error
        Largest relative error of a token in the check.
    rounds
        How often it was timed.
    median_ms, p20_ms, p80_ms
        Of these times.
    baseline
        The dense contender with the smallest median in this case.
    time_ratio, time_ratio_low, time_ratio_high
        Median of the ratios to the baseline's time in the same round, and its 95 % interval.
    to_...
        The same median to another contender's time.
    multiply_adds
        Of the layers, as a fraction of a dense frame's.
    peak_mib
        The most that was allocated beyond weights and frames while it was made and encoded its
        first frames; None on a CPU.
    state_mib
        What is kept between frames, of all streams.
    packed_mib
        Second copies of weights.
    backend
        What its operators ran on.
    problem
        Why it is not correct, if the error does not say; empty otherwise.
    """

    geometry: str
    layers: int
    width: int
    tokens: int
    dtype: str
    streams: int
    ratio: float
    rows: int
    contender: str
    correct: bool
    error: float
    rounds: int = 0
    median_ms: float | None = None
    p20_ms: float | None = None
    p80_ms: float | None = None
    baseline: str = ""
    time_ratio: float | None = None
    time_ratio_low: float | None = None
    time_ratio_high: float | None = None
    to_dense_eager: float | None = None
    to_dense_compiled: float | None = None
    to_dense_graph: float | None = None
    to_paper_eager: float | None = None
    to_paper_graph: float | None = None
    multiply_adds: float = 1.0
    peak_mib: float | None = None
    state_mib: float = 0.0
    packed_mib: float = 0.0
    backend: str = "torch"
    problem: str = ""

    def to(self, contender: str) -> float | None:
        """Ratio of its time to another contender's in the same round."""
        found: float | None = getattr(self, ratio_column(contender), None)
        return found


def ratio_column(contender: str) -> str:
    """Column with the ratios to a contender's times."""
    return "to_" + contender.replace("-", "_")


@dataclass(frozen=True)
class NotMeasured:
    """A contender that could not run in a case.

    Attributes
    ----------
    geometry, streams, ratio, contender
        Which.
    reason
        Why, in words.
    for_memory
        Whether it is that it does not fit.
    """

    geometry: str
    streams: int
    ratio: float
    contender: str
    reason: str
    for_memory: bool


@dataclass(frozen=True)
class Measured:
    """The results of one case."""

    rows: tuple[Row, ...]
    left_out: tuple[NotMeasured, ...] = ()


def write_tables(
    rows: Sequence[Row],
    left_out: Sequence[NotMeasured],
    folder: Path,
    name: str,
    where: Mapping[str, object],
    details: Mapping[str, Any],
) -> list[Path]:
    """Write NAME.csv and NAME.json into a folder, each whole or not at all.

    Parameters
    ----------
    rows, left_out
        The results. Without rows there is no CSV.
    folder, name
        Where.
    where
        Columns that every row of the CSV gets: device, versions, command.
    details
        What else the JSON has.
    """
    written = []
    if rows:
        cells = [asdict(row) | dict(where) for row in rows]
        written.append(write_csv(cells, folder / f"{name}.csv"))
    path = folder / f"{name}.json"
    with atomic(path) as file:
        file.write(as_json(rows, left_out, details))
    return [*written, path]


def as_json(
    rows: Sequence[Row], left_out: Sequence[NotMeasured], details: Mapping[str, Any]
) -> str:
    """Return the results as JSON."""
    found = {
        **details,
        "rows": [asdict(row) for row in rows],
        "not_measured": [asdict(one) for one in left_out],
    }
    return json.dumps(finite(found), indent=1, allow_nan=False) + "\n"


def shown_ratio(ratio: float) -> str:
    """Write a ratio as a fraction where it is a simple one."""
    simple = Fraction(ratio).limit_denominator(64)
    return str(simple) if abs(float(simple) - ratio) < 1e-9 else f"{ratio:g}"
