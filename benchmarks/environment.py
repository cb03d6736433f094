# SPDX-License-Identifier: Apache-2.0
"""What every row of a results file says about where it was measured."""

from __future__ import annotations

import csv
import platform
import sys
from pathlib import Path

import torch

from stc_video.cli.environment import cpu_name, revision


def environment() -> dict[str, object]:
    """Machine, versions, git revision and command line."""
    return {
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": revision() or "unknown",
        "command": " ".join(["python", *map(_by_name, sys.argv)]),
    }


def _by_name(argument: str) -> str:
    """Leave out where clips and other files lie on this machine alone."""
    path = Path(argument)
    return path.name if path.is_absolute() or path.suffix in (".mp4", ".avi") else argument


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a table as CSV, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def merge_rows(path: Path, rows: list[dict[str, object]], by: str) -> None:
    """Write a table as CSV; rows that are there stay if nothing was measured at their ``by``.

    That is a number, and the order of the table. Rows of other columns do not stay.
    """
    before: list[dict[str, object]] = []
    if path.exists():
        with path.open(newline="") as file:
            before = [dict(row) for row in csv.DictReader(file)]
    measured = {float(str(row[by])) for row in rows}
    kept = [row for row in before if row.keys() == rows[0].keys()]
    kept = [row for row in kept if float(str(row[by])) not in measured]
    write_rows(path, sorted([*kept, *rows], key=lambda row: float(str(row[by]))))
