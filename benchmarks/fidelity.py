# SPDX-License-Identifier: Apache-2.0
"""``stc fidelity`` with its table kept in ``benchmarks/results``.

    python benchmarks/fidelity.py CLIP.mp4 ... --threads 1

Takes the options of ``stc fidelity``, but for ``--out``: the page is in ``out``. Rows of frame
rates that were not measured this time stay. Similarities and costs do not depend on how busy the
machine is; times do: ``--no-times`` leaves them out. ``benchmarks/plot_fidelity.py`` draws the
table.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from environment import environment, write_rows

from stc_video.cli.app import run_app

RESULTS = Path(__file__).parent / "results" / "fidelity.csv"
OUT = Path("out")


def read(path: Path) -> list[dict[str, object]]:
    """Return the rows of a table; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]


def merged(
    before: list[dict[str, object]], rows: list[dict[str, object]]
) -> list[dict[str, object]]:
    """Return all rows by frame rate, new ones in place of those of the same rate."""
    rates = {row["fps"] for row in rows}
    kept = [row for row in before if row["fps"] not in rates and row.keys() == rows[0].keys()]
    return sorted([*kept, *rows], key=lambda row: float(str(row["fps"])))


def main() -> int:
    facts = {name: environment()[name] for name in ("python", "revision", "command")}
    status = run_app(["fidelity", *sys.argv[1:], "--out", str(OUT)])
    if status == 0:
        rows = [row | facts for row in read(OUT / "fidelity.csv")]
        write_rows(RESULTS, merged(read(RESULTS), rows))
        print(RESULTS)
    return status


if __name__ == "__main__":
    sys.exit(main())
