# SPDX-License-Identifier: Apache-2.0
"""``stc fidelity`` with its table kept in ``benchmarks/results``.

    python benchmarks/fidelity.py CLIP.mp4 ... --threads 1

Takes the options of ``stc fidelity``, but for ``--out``: the page is in ``out``. Similarities and
costs depend on neither the machine nor its load, times on both.
``benchmarks/plot_fidelity.py`` draws the table.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from environment import environment, write_rows

from stc_video.cli.app import run_app

RESULTS = Path(__file__).parent / "results" / "fidelity.csv"
OUT = Path("out")


def main() -> int:
    facts = environment()
    arguments = sys.argv[1:]
    status = run_app(["fidelity", *arguments, "--out", str(OUT)])
    if status == 0:
        with (OUT / "fidelity.csv").open(newline="") as file:
            rows = [dict(row) for row in csv.DictReader(file)]
        own = {name: facts[name] for name in ("python", "revision", "command")}
        write_rows(RESULTS, [row | own for row in rows])
        print(RESULTS)
    return status


if __name__ == "__main__":
    sys.exit(main())
