# SPDX-License-Identifier: Apache-2.0
"""``stc fidelity`` with its table kept in ``benchmarks/results``.

    python benchmarks/fidelity.py CLIP.mp4 ... --threads 1

Takes the options of ``stc fidelity``, but for ``--out``: the page is in ``out``; and ``--table``,
the name of the table, by default ``fidelity``. Rows of frame rates that were not measured this time
stay. Similarities and costs do not depend on how busy the machine is; times do: ``--no-times``
leaves them out. ``benchmarks/plot_fidelity.py`` draws the table.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from environment import environment, merge_rows

from stc_video.cli.app import run_app

RESULTS = Path(__file__).parent / "results"
OUT = Path("out")


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--table", default="fidelity")
    own, rest = parser.parse_known_args()
    facts = {name: environment()[name] for name in ("python", "revision", "command")}
    status = run_app(["fidelity", *rest, "--out", str(OUT)])
    if status == 0:
        with (OUT / "fidelity.csv").open(newline="") as file:
            rows = [row | facts for row in csv.DictReader(file)]
        table = RESULTS / f"{own.table}.csv"
        merge_rows(table, rows, by="fps")
        print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
