# SPDX-License-Identifier: Apache-2.0
"""A picture of the results: time against the part of the tokens that is re-encoded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stc_video.bench.contenders import KINDS
from stc_video.bench.table import Row, shown_ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(rows: Sequence[Row], path: Path, caption: str) -> Path:
    """Draw the times as fractions of the best dense one, a panel per tower and batch.

    Parameters
    ----------
    rows
        The results.
    path
        The file; its suffix decides the format.
    caption
        Where it was measured.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is missing.
    """
    from matplotlib.figure import Figure

    timed = [row for row in rows if row.time_ratio is not None]
    geometries = list(dict.fromkeys(row.geometry for row in timed))
    batches = sorted({row.streams for row in timed})
    size = (1.5 + 3.6 * len(batches), 1.4 + 3.2 * len(geometries))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(geometries), len(batches), sharex=True, squeeze=False)
    for at, geometry in enumerate(geometries):
        for column, streams in enumerate(batches):
            axes = panels[at, column]
            here = [row for row in timed if (row.geometry, row.streams) == (geometry, streams)]
            _draw_panel(axes, here)
            axes.set_title(f"{geometry}, {streams} stream{'s' if streams > 1 else ''}", fontsize=9)
            if at == len(geometries) - 1:
                axes.set_xlabel("part of the tokens re-encoded")
        panels[at, 0].set_ylabel("time / best dense")
    lines = {line.get_label(): line for axes in panels.flat for line in axes.containers}
    names = [name for name in (*KINDS, _OPERATIONS) if name in lines]
    figure.legend([lines[name] for name in names], names, loc="outside right upper", fontsize=8)
    figure.suptitle(caption, fontsize=8)
    figure.savefig(path)
    return path


_OPERATIONS = "multiply-adds of motion"


def _draw_panel(axes: Axes, rows: Sequence[Row]) -> None:
    """One line per contender, with the interval of each ratio."""
    for number, name in enumerate(KINDS):
        points = sorted((row for row in rows if row.contender == name), key=lambda row: row.ratio)
        if points:
            _draw_line(axes, name, points, f"C{number}")
    counted = sorted({(row.ratio, row.multiply_adds) for row in rows if row.contender == "motion"})
    if counted:
        x, y = ([pair[place] for pair in counted] for place in (0, 1))
        axes.errorbar(x, y, fmt="k:", linewidth=0.9, label=_OPERATIONS)
    ratios = sorted({row.ratio for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ratios, [shown_ratio(ratio) for ratio in ratios])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=0.0)
    axes.grid(alpha=0.3)


def _draw_line(axes: Axes, name: str, points: Sequence[Row], color: str) -> None:
    values = [row.time_ratio or math.nan for row in points]
    below = [
        value - (row.time_ratio_low or value) for value, row in zip(values, points, strict=True)
    ]
    above = [
        (row.time_ratio_high or value) - value for value, row in zip(values, points, strict=True)
    ]
    # An interval that leaves out the median has no length on that side.
    errors = [[max(0.0, one) for one in side] for side in (below, above)]
    style = "--" if KINDS[name].is_dense else "-"
    axes.errorbar(
        [row.ratio for row in points], values, errors, label=name, color=color, linestyle=style,
        marker="o", markersize=3, linewidth=1.2, capsize=2,
    )  # fmt: skip
