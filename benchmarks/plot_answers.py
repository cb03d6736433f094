# SPDX-License-Identifier: Apache-2.0
"""Draw what ``stc eval --study`` measured of the small model, into ``docs/figures/answers.png``.

    python benchmarks/plot_answers.py

It also prints the table of docs/world.md.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results" / "world_answers.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "answers.png"
#: what a configuration's name begins with -> what it is called, colour, and what its numbers are
FAMILIES = {
    "motion": ("motion, quality", "#3b82f6", r"q([\d.]+)"),
    "stc-": ("stc's cacher, interval", "#e8590c", r"i(\d+)"),
    "none stc": ("stc's pruner, tokens", "#f59f00", r"-(\d+)"),
    "none dtd": ("dtd, tokens", "#0b62c4", r"-(\d+)"),
    "none uniform": ("uniform, tokens", "#868e96", r"-(\d+)"),
    "none random": ("random, tokens", "#7a4fc9", r"-(\d+)"),
    "none none rekv": ("rekv, tokens retrieved", "#0c8577", r"-(\d+)"),
    "last 4": ("last 4 frames", "#74b816", None),
    "STC's": ("STC's setting", "#c92a2a", None),
    "ours": ("motion and 4 tokens, quality", "#2b8a3e", r"quality ([\d.]+)"),
    "blind": ("blind", "#adb5bd", None),
    "dense": ("dense, all tokens", "#000000", None),
}
PANELS = {"work": "work of the tower, of dense", "context_tokens": "tokens read for an answer"}


HEADER = ("configuration", "work", "tokens per frame", "tokens read", "right", "accuracy, %",
          "kept, %")  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a `scores.csv` that are about all questions."""
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["by"] == "all"]


def table(rows: Sequence[dict[str, str]]) -> list[str]:
    """Lines of a table for the documents."""
    lines = [HEADER, ("---",) * len(HEADER)]
    for row in rows:
        low, high = percent(row["low"]), percent(row["high"])
        kept = percent(row["kept"])
        between = f" ({percent(row['kept_low'])} to {percent(row['kept_high'])})" if kept else ""
        cells = (
            row["configuration"],
            f"{float(row['work']):.2f}",
            f"{float(row['tokens_per_frame']):.3g}",
            f"{float(row['context_tokens']):.0f}",
            f"{row['right']} of {row['total']}",
            f"{percent(row['accuracy'])} ({low} to {high})",
            kept + between,
        )
        lines.append(cells)
    return [f"| {' | '.join(cells)} |" for cells in lines]


def percent(value: str) -> str:
    """A part in percent; empty if there is none."""
    return f"{100 * float(value):.0f}" if value else ""


def main() -> None:
    rows = read(RESULTS)
    print("\n".join(table(rows)))
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5), sharey=True, layout="constrained")
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        for row in rows:
            if column == "work" and float(row["work"]) > 0.999 and row["configuration"] != "dense":
                continue  # all of them are at 1
            draw(axis, row, float(row[column]))
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="right answers, %, with 95 % intervals")
    handles = {h.get_label(): h for axis in axes for h in axis.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    figure.savefig(FIGURE, dpi=80, metadata={"Software": None})
    print(FIGURE)


def draw(axis: Axes, row: dict[str, str], x: float) -> None:
    """Draw one configuration, with its number beside it."""
    name = row["configuration"]
    family, colour, number = next(f for start, f in FAMILIES.items() if name.startswith(start))
    y, low, high = (100 * float(row[key]) for key in ("accuracy", "low", "high"))
    axis.errorbar(
        x, y, [[y - low], [high - y]], fmt="o", color=colour, elinewidth=0.5, label=family
    )
    if number and (match := re.search(number, name)):
        axis.annotate(match[1], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8,
                      color=colour)  # fmt: skip


if __name__ == "__main__":
    main()
