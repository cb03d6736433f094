# SPDX-License-Identifier: Apache-2.0
"""Draw what ``stc eval --study`` measured of the small model, into ``docs/figures/answers.png``.

python benchmarks/plot_answers.py
"""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "world_answers.csv"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "answers.png"
#: what a configuration's name begins with -> colour
COLOURS = {
    "motion": "#3b82f6",
    "stc-": "#e8590c",
    "none stc": "#e8590c",
    "none dtd": "#0b62c4",
    "none uniform": "#868e96",
    "none random": "#7a4fc9",
    "none none rekv": "#0c8577",
    "last 4": "#0c8577",
    "STC's": "#c92a2a",
    "ours": "#2b8a3e",
    "dense": "#000000",
}
PANELS = {"work": "work of the tower, of dense", "context_tokens": "tokens read for an answer"}


def main() -> None:
    with RESULTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["by"] == "all"]
    figure, axes = plt.subplots(1, 2, figsize=(12.5, 5), sharey=True, layout="constrained")
    for axis, (column, label) in zip(axes, PANELS.items(), strict=True):
        for row in rows:
            x, y = float(row[column]), 100 * float(row["accuracy"])
            colour = next(c for name, c in COLOURS.items() if row["configuration"].startswith(name))
            spread = [[y - 100 * float(row["low"])], [100 * float(row["high"]) - y]]
            axis.errorbar(x, y, spread, marker="o", color=colour, elinewidth=0.6)
            if column != "work" or x < 0.999 or row["configuration"] == "dense":
                axis.annotate(row["configuration"].removeprefix("none ").removesuffix(" plain"),
                              (x, y), xytext=(5, 3), textcoords="offset points", fontsize=7,
                              color=colour)  # fmt: skip
        axis.set(xlabel=label)
    axes[0].set(ylabel="right answers, %, with 95 % intervals")
    axes[1].set(xscale="log")
    figure.savefig(FIGURE, dpi=80, metadata={"Software": None})
    print(FIGURE)


if __name__ == "__main__":
    main()
