# SPDX-License-Identifier: Apache-2.0
"""What every row of a results file says about where it was measured."""

from __future__ import annotations

import csv
import platform
import subprocess
import sys
from pathlib import Path

import torch


def environment() -> dict[str, object]:
    """Machine, versions, git revision and command line."""
    return {
        "device": _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "revision": _revision(),
        "command": " ".join(["python", *sys.argv]),
    }


def write_rows(path: Path, rows: list[dict[str, object]]) -> None:
    """Write a table as CSV, replacing the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _revision() -> str:
    """Short hash of the commit, with a plus sign if the working tree differs from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    here = Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
