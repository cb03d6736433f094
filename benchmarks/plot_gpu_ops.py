# SPDX-License-Identifier: Apache-2.0
"""Draw ``results/gpu_ops.csv``: how much faster than plain PyTorch, and how near to a copy.

Run it after ``gpu_ops.py``::

python benchmarks/plot_gpu_ops.py       # writes benchmarks/results/gpu_ops.png
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results" / "gpu_ops.csv"
OURS = ("triton", "native")


def draw(rows: list[dict[str, str]], out: Path) -> None:
    """One column of panels per batch size: speed-up above, share of the copy bandwidth below."""
    batches = sorted({int(row["batch"]) for row in rows})
    groups = len({(row["op"], row["geometry"]) for row in rows})
    size = (5 * len(batches), 2 + 0.3 * groups)
    figure, axes = plt.subplots(
        2, len(batches), figsize=size, sharey="row", squeeze=False, layout="constrained"
    )
    for column, batch in enumerate(batches):
        here = [row for row in rows if int(row["batch"]) == batch and row["backend"] in OURS]
        for axis, field, line in (
            (axes[0][column], "speedup_over_best_plain", 1.0),
            (axes[1][column], "share_of_copy_bandwidth", 0.8),
        ):
            bars(axis, here, field)
            axis.axvline(line, color="black", linewidth=0.8, linestyle=":")
            axis.set_xlabel(field.replace("_", " "))
        axes[0][column].set_title(f"batch {batch}")
        axes[0][column].set_xscale("log", base=2)
        axes[0][column].xaxis.set_major_formatter("{x:g}")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(OURS))
    device, torch_version = rows[0]["device"], rows[0]["torch"]
    figure.suptitle(f"{device}, torch {torch_version}, {rows[0]['dtype']}, CUDA graph, cold L2")
    figure.savefig(out, dpi=110)


def bars(axis: plt.Axes, rows: list[dict[str, str]], field: str) -> None:
    """Horizontal bars, a group per operator and geometry, a bar per backend."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        groups[f"{row['op']}  {row['geometry']}"][row["backend"]] = float(row[field])
    for offset, backend in enumerate(OURS):
        places = [n + 0.4 * offset for n, group in enumerate(groups.values()) if backend in group]
        values = [group[backend] for group in groups.values() if backend in group]
        if values:
            axis.barh(places, values, height=0.4, label=backend)
    axis.set_yticks(range(len(groups)), list(groups), fontsize=6)
    axis.invert_yaxis()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--out", type=Path, help="default: beside the CSV, as .png")
    arguments = parser.parse_args()
    if not arguments.csv.exists():
        raise SystemExit(f"{arguments.csv} does not exist; gpu_ops.py writes it on a GPU")
    with arguments.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    draw(rows, arguments.out or arguments.csv.with_suffix(".png"))


if __name__ == "__main__":
    main()
