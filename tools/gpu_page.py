# SPDX-License-Identifier: Apache-2.0
"""The page of a GPU session: what each step said, and which limits are kept."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gpu_steps import Step

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from predictions import compared  # noqa: E402

#: limits of tables that do not judge themselves, as `stc bench` does
LIMITS = ROOT / "benchmarks" / "limits" / "gpu_session.csv"
PREDICTED = ROOT / "benchmarks" / "results" / "gpu_predicted.csv"
PRETENDED = "**A dry run on a CPU: no figure and no verdict on this page is about a GPU.**"


class Outcome(NamedTuple):
    """What became of a step: passed, failed, cut, skipped or not reached."""

    step: str
    status: str
    seconds: float
    note: str


class Limit(NamedTuple):
    """A limit, and what was measured; None if it was not."""

    what: str
    at_most: float
    measured: float | None

    @property
    def verdict(self) -> str:
        """Pass, fail, or not measured."""
        if self.measured is None:
            return "not measured"
        return "pass" if self.measured <= self.at_most else "FAIL"


def read(path: Path) -> list[dict[str, str]]:
    """Rows of a table; none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def limits(out: Path) -> Iterator[Limit]:
    """Every limit, in the order of the steps."""
    for row in read(LIMITS):
        where = dict(part.split("=", 1) for part in row["where"].split(" & "))
        measured = [
            float(found[row["column"]])
            for found in read(out / f"{row['table']}.csv")
            if found[row["column"]] and where.items() <= found.items()
        ]
        # Of several backends the best one counts, which is the one that is used once tuned.
        best = min(measured) if measured else None
        what = f"{row['table']}: {row['column']} at {row['where']}"
        yield Limit(what, float(row["at_most"]), best)
    yield from _cacher_limits(out / "gpu_cacher.json")


def _cacher_limits(path: Path) -> Iterator[Limit]:
    """Return what `stc bench` judged, or what it would have judged."""
    judged = json.loads(path.read_text())["limits"] if path.exists() else []
    for row in judged or read(ROOT / "benchmarks" / "limits" / "gpu_cacher.csv"):
        case = f"{row['geometry']}, {row['streams']} streams, ratio {row['ratio']}"
        what = f"gpu_cacher: {row['contender']} / {row['baseline']}, {case}"
        yield Limit(what, float(row["at_most"]), row.get("measured"))


def write_page(
    out: Path, steps: Sequence[Step], outcomes: Mapping[str, Outcome], pretend: bool
) -> None:
    """Write OUT/session.md anew; it is whole at any time."""
    lines = ["# GPU session", "", PRETENDED if pretend else machine(), ""]
    lines += ["## Steps", "", "| step | | seconds | of | |", "|---|---|---|---|---|"]
    for step in steps:
        found = outcomes.get(step.name) or Outcome(step.name, "not reached", 0.0, "")
        note = found.note.replace("|", "\\|")
        cells = (step.name, found.status, f"{found.seconds:.0f}", str(step.seconds), note)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Limits", "", "| limit | at most | measured | |", "|---|---|---|---|"]
    for limit in () if pretend else limits(out):
        measured = "" if limit.measured is None else f"{limit.measured:.3g}"
        lines.append(f"| {limit.what} | {limit.at_most:g} | {measured} | {limit.verdict} |")
    if (out / "gpu_cacher.csv").exists() and not pretend:
        lines += ["", "## Predicted and measured", ""]
        lines += compared(PREDICTED, out / "gpu_cacher.csv")
    temporary = out / "session.md.part"
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, out / "session.md")


def machine() -> str:
    """Name the GPU and the versions."""
    import torch

    facts = [torch.cuda.get_device_name(), f"torch {torch.__version__}"]
    try:
        import triton

        facts.append(f"Triton {triton.__version__}")
    except ModuleNotFoundError:
        facts.append("no Triton")
    return ", ".join([*facts, f"CUDA {torch.version.cuda}"])
