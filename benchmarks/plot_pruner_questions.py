# SPDX-License-Identifier: Apache-2.0
"""Draw what ``pruner_questions.py`` and ``cpu_pruners.py`` measured, into ``docs/figures``.

python benchmarks/plot_pruner_questions.py       # a figure for every CSV that is there
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
FIGURES = Path(__file__).parents[1] / "docs" / "figures"
COLOURS = {"time only": "#e8590c", "space only": "#0b62c4", "both": "#7a4fc9",
           "checkerboard": "#0b62c4", "stripes": "#e8590c", "random": "#868e96"}  # fmt: skip
Row = dict[str, str]


def mean(rows: list[Row], field: str) -> float:
    """Mean over the clips, each counting the same."""
    values = [float(row[field]) for row in rows if row[field] != ""]
    return float(np.mean(values)) if values else float("nan")


def over(rows: list[Row], key: str, *fields: str) -> list[list[float]]:
    """Means of the fields at each value of a column, the values first."""
    steps = sorted({float(row[key]) for row in rows})
    groups = [[row for row in rows if float(row[key]) == step] for step in steps]
    return [steps, *([mean(group, field) for group in groups] for field in fields)]


def thresholds(rows: list[Row]) -> Figure:
    """Tokens kept, and precision against recall for what moved and what is salient."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4), layout="constrained")
    for stage in ("time only", "space only", "both"):
        own = [row for row in rows if row["stage"] == stage]
        steps, kept = over(own, "threshold", "kept_percent")
        axes[0].plot(steps, kept, marker=".", color=COLOURS[stage], label=stage)
        for axis, what, title in ((axes[1], "moved", "of what moved"),
                                  (axes[2], "salient", "of what is salient")):  # fmt: skip
            _, precision, recall = over(own, "threshold", f"precision_{what}", f"recall_{what}")
            axis.plot(recall, precision, marker=".", color=COLOURS[stage], label=stage)
            for step, x, y in zip(steps, recall, precision, strict=True):
                if stage != "space only" and step in (0.2, 0.5, 0.8, 0.95):
                    axis.annotate(f"{step:g}", (x, y), xytext=(3, 4), textcoords="offset points",
                                  fontsize=8, color=COLOURS[stage])  # fmt: skip
            axis.set(xlabel=f"{title}, kept", ylabel=f"of the kept, {what}")
            axis.set(xlim=(0, 1), ylim=(0, 1.03))
    axes[0].axvspan(0.05, 0.8, color="#868e96", alpha=0.15, lw=0)
    axes[0].set(xlabel="cosine above which a token is dropped", ylabel="tokens kept, %")
    axes[0].legend()
    return figure


def masks(rows: list[Row]) -> Figure:
    """What stands for the dropped tokens, and whether the choice follows the picture."""
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4), layout="constrained")
    styles = {"fixed": "-", "alternating": "--", "adaptive": ":"}
    bars = []
    for pattern in ("checkerboard", "stripes", "random"):
        for parity, line in styles.items():
            own = [r for r in rows if (r["pattern"], r["parity"]) == (pattern, parity)]
            _, kept, low = over(own, "threshold", "kept_percent", "explained_p5")
            label = f"{pattern}, {parity}"
            axes[0].plot(kept, low, line, color=COLOURS[pattern], label=label)
            half = [row for row in own if row["threshold"] == "0.5"]
            shares = [
                mean(half, f)
                for f in ("kept_even_percent", "kept_odd_percent", "dropped_alike_when_shifted")
            ]
            bars.append((label, COLOURS[pattern], shares))
    axes[0].set(xlabel="tokens kept, %", ylabel="5th percentile of cosine of a\ndropped token to "
                "a kept one of its frame", xlim=(49, 70))  # fmt: skip
    axes[0].legend(fontsize=7)
    places = np.arange(len(bars))
    names, colours = [bar[0] for bar in bars], [bar[1] for bar in bars]
    axes[1].barh(places - 0.2, [b[2][0] for b in bars], 0.4, color=colours, label="even places")
    axes[1].barh(places + 0.2, [b[2][1] for b in bars], 0.4, color=colours, alpha=0.45)
    axes[1].set(xlabel="kept at threshold 0.5, %: even places (dark),\nodd places (light)")
    axes[2].barh(places, [b[2][2] for b in bars], color=colours)
    axes[2].set(xlabel="same tokens dropped after the picture\nmoved by one token", xlim=(0, 1))
    for axis in axes[1:]:
        axis.set_yticks(places, names, fontsize=8)
        axis.invert_yaxis()
    return figure


def scale(rows: list[Row]) -> Figure:
    """Kept quality of ever larger grids, and time where it was measured."""
    times = read(RESULTS / "cpu_pruners.csv")
    timed = [row for row in times if row["exponent"]]
    figure, axes = plt.subplots(
        1, 2 + bool(timed), figsize=(8.5 + 4 * bool(timed), 4), layout="constrained"
    )
    for number, method in enumerate(dict.fromkeys(row["method"] for row in rows)):
        own = [row for row in rows if row["method"] == method]
        line = "--" if method.startswith(("uniform", "random")) else "-"
        colour = plt.colormaps["tab10"](number)
        steps, low, found = over(own, "tokens", "explained_p5", "recall_moved")
        axes[0].plot(steps, low, line, marker=".", color=colour, label=method)
        axes[1].plot(steps, found, line, marker=".", color=colour)
    axes[0].set(ylabel="5th percentile of cosine of a\ndropped token to a kept one")
    axes[0].legend(fontsize=7)
    axes[1].set(ylabel="of what moved, kept", ylim=(0, 1.03))
    if timed:
        time_panel(axes[2], timed)
    for axis in axes:
        axis.set(xscale="log", xlabel="tokens per frame")
    return figure


def time_panel(axis: Axes, rows: list[Row]) -> None:
    """Milliseconds per frame, and the exponent of a power law through them."""
    for name in dict.fromkeys(row["pruner"] for row in rows):
        own = [row for row in rows if row["pruner"] == name]
        tokens = [int(row["shape"].split("x")[1]) for row in own]
        axis.plot(tokens, [float(row["median_us"]) / 1e3 for row in own], marker=".",
                  label=f"{name}, tokens^{float(own[0]['exponent']):.2f}")  # fmt: skip
    axis.set(ylabel=f"ms per frame ({rows[0]['device']}, {rows[0]['threads']} threads)",
             yscale="log")  # fmt: skip
    axis.legend(fontsize=7)


def read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


FIGURE: dict[str, Callable[[list[Row]], Figure]] = {
    "thresholds": thresholds,
    "masks": masks,
    "scale": scale,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FIGURES)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for question, draw in FIGURE.items():
        rows = read(RESULTS / f"pruner_{question}.csv")
        if not rows:
            print(f"results/pruner_{question}.csv is not there; pruner_questions.py writes it")
            continue
        path = arguments.out / f"pruner_{question}.png"
        figure = draw(rows)
        figure.savefig(path, dpi=80, metadata={"Software": None})
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
