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
        "command": " ".join(["python", *sys.argv]),
    }


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a table as CSV, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
