# SPDX-License-Identifier: Apache-2.0
"""``stc prune-study`` with its table kept in ``benchmarks/results``.

    python benchmarks/pruners.py CLIP.mp4 ... --threads 2

Takes the options of ``stc prune-study``, but for ``--out``: the page is in ``out``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from stc_video.cli.app import run_app

RESULTS = Path(__file__).parent / "results" / "prune_study.csv"
OUT = Path("out")


def main() -> int:
    status = run_app(["prune-study", *sys.argv[1:], "--out", str(OUT)])
    if status == 0:
        shutil.copyfile(OUT / "prune_study.csv", RESULTS)
        print(RESULTS)
    return status


if __name__ == "__main__":
    sys.exit(main())
