# SPDX-License-Identifier: Apache-2.0
"""Draw what ``fidelity.py`` and ``promise.py`` measured, into ``docs/figures/fidelity.png``.

python benchmarks/plot_fidelity.py
"""

from __future__ import annotations

import argparse
import csv
from fractions import Fraction
from itertools import product
from pathlib import Path
from statistics import mean

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

RESULTS = Path(__file__).parent / "results" / "fidelity.csv"
PROMISE = RESULTS.with_name("promise.csv")
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "fidelity.png"
ALL = "all"
Row = dict[str, str]

STYLES = {
    ("stc", "2"): ("#e8590c", "o", "-"),
    ("stc", "4"): ("#e8590c", "D", "--"),
    ("stc", "8"): ("#e8590c", "s", ":"),
    ("motion", "quality"): ("#3b82f6", "o", "-"),
    ("motion", "threshold"): ("#0c8577", "D", "--"),
}
#: Column, label, whether it is an error (drawn from its similarity).
PANELS = (
    ("error", "mean error (1 - cosine)", True),
    ("worst_clip_error", "error of the worst clip", True),
    ("saliency_iou", "saliency IoU", False),
)


def family(row: Row) -> tuple[str, str]:
    """What the settings on one line have in common."""
    if row["policy"] == "stc":
        return "stc", row["interval"]
    return "motion", "quality" if row["quality"] else "threshold"


def label(row: Row) -> str:
    """The number in which a setting differs from the others on its line."""
    if row["ratio"]:
        return str(Fraction(float(row["ratio"])).limit_denominator(64))
    return row["quality"] or row["threshold"]


def promised(rates: list[str], clips: set[str]) -> list[Row]:
    """What each promised quality came to, over the clips of the grid."""
    with PROMISE.open(newline="") as file:
        measured = [row for row in csv.DictReader(file) if row["clip"] in clips]
    qualities = dict.fromkeys(row["quality"] for row in measured)
    rows = []
    for rate, quality in product(rates, qualities):
        own = [r for r in measured if r["quality"] == quality and float(r["fps"]) == float(rate)]
        errors = [1 - float(row["cosine"]) for row in own]
        found = {
            "cost": mean(float(row["cost"]) for row in own),
            "error": mean(errors),
            "worst_clip_error": max(errors),
        }
        rows.append(
            {"policy": "motion", "ratio": "", "quality": quality, "fps": rate}
            | {name: str(value) for name, value in found.items()}
        )
    return rows


def draw(axis: Axes, rows: list[Row], column: str, words: str, is_error: bool) -> None:
    """One panel: a measure against cost, a line for each family."""
    for key, (colour, marker, line) in STYLES.items():
        own = [row for row in rows if family(row) == key and column in row]
        own.sort(key=lambda row: float(row["cost"]))
        if not own:
            continue
        x, y = [float(r["cost"]) for r in own], [float(r[column]) for r in own]
        name = f"{key[0]}, interval {key[1]}" if key[0] == "stc" else ", ".join(key)
        axis.plot(x, y, line, color=colour, marker=marker, ms=5, label=name)
        for row, left, up in zip(own, x, y, strict=True):
            axis.annotate(label(row), (left, up), xytext=(4, 4), textcoords="offset points",
                          fontsize=7, color=colour)  # fmt: skip
    axis.set(xlabel="work (fraction of dense multiply-adds)", ylabel=words)
    if is_error:
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(ScalarFormatter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=FIGURE)
    arguments = parser.parse_args()
    with arguments.results.open(newline="") as file:
        cached = [row for row in csv.DictReader(file) if row["policy"] != "dense"]
    rows = [row for row in cached if row["clip"] == ALL]
    rates = list(dict.fromkeys(row["fps"] for row in rows))
    panels = [panel for panel in PANELS if all(row[panel[0]] for row in rows)]
    rows += promised(rates, {row["clip"] for row in cached})
    figure, axes = plt.subplots(
        len(rates),
        len(panels),
        figsize=(4.4 * len(panels), 3.9 * len(rates)),
        layout="constrained",
        squeeze=False,
    )
    for line, rate in zip(axes, rates, strict=True):
        for axis, panel in zip(line, panels, strict=True):
            draw(axis, [row for row in rows if row["fps"] == rate], *panel)
        line[0].set_title(f"{float(rate):g} fps", loc="left", fontweight="bold")
    axes[0][0].legend(fontsize=7)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=80, metadata={"Software": None})
    print(arguments.out)


if __name__ == "__main__":
    main()
