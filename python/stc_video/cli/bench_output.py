# SPDX-License-Identifier: Apache-2.0
"""The results of `stc bench` as tables, files and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stc_video.bench.contenders import KINDS
from stc_video.bench.grid import Grid
from stc_video.bench.limits import Limit, Outcome, judge
from stc_video.bench.run import measure, steps
from stc_video.bench.table import Measured, NotMeasured, Row, as_json, write_tables
from stc_video.cli.bench_view import case_name, show_case, show_limits
from stc_video.cli.environment import cpu_name, environment, revision, versions
from stc_video.cli.output import show_verdict
from stc_video.cli.progress import bars
from stc_video.cli.stop import Stop
from stc_video.report.verdict import Tried, Verdict, best_verdict

_EVERYWHERE = ("token_cosine", "select_changed", "gather_rows", "scatter_rows_", "scatter_residual")
#: operators of a cached frame, by the type of the device
_OPS = {
    "cpu": _EVERYWHERE,
    "cuda": (*_EVERYWHERE, "sparse_query_attention", "scatter_key_value_"),
}
RANDOM_WEIGHTS = "random weights of unit gain, random frames: a time, not a quality"


class BenchOutput:
    """The results of a run of `stc bench` so far, on the console and in files.

    Parameters
    ----------
    grid
        What is measured.
    limits
        What the results are judged by.
    backends
        Operator -> backend.
    folder, name
        Files are FOLDER/NAME.csv and so on; no folder, no files.
    as_json
        Whether standard output is JSON, and everything else goes to standard error.
    command
        The command line, for the files.
    """

    def __init__(
        self,
        grid: Grid,
        limits: Sequence[Limit],
        backends: dict[str, str],
        folder: Path | None,
        name: str,
        *,
        as_json: bool,
        command: str,
    ) -> None:
        self.grid, self.limits, self.backends = grid, limits, backends
        self.folder, self.name, self.as_json = folder, name, as_json
        self.command = command
        self.console = Console(highlight=False, stderr=as_json)
        self.rows: list[Row] = []
        self.left_out: list[NotMeasured] = []
        self.finished = 0
        self.where = self._where()  # once: files that are written make a checkout differ

    def measure(self, stop: Stop) -> None:
        """Go over the cases; raises KeyboardInterrupt between two steps."""
        where = f"{self._device()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        self.console.print(f"{where}; {RANDOM_WEIGHTS}.", markup=False)
        used = " ".join(sorted({self.backends[op] for op in _OPS[self.grid.device.type]}))
        with bars(self.console, stop) as bar:
            step = bar("Measuring", "steps", steps(self.grid))
            for case in measure(self.grid, used, step):
                self._take(case)

    def stopped(self) -> None:
        """Say what is kept after Ctrl-C."""
        kept = "; nothing was written" if not self.finished else self._written()
        self.console.print(
            f"Stopped after {self.finished} of {self.grid.cases} cases{kept}.", markup=False
        )
        if self.finished and self.as_json:
            print(self._json(), end="")

    def close(self, notes: Sequence[str]) -> int:
        """Draw, judge and say what became of everything; the exit code."""
        for note in notes:
            self.console.print(f"Note: {note}", style="yellow", markup=False)
        outcomes = judge(self.limits, self.rows)
        if outcomes:
            show_limits(self.console, outcomes)
        self._draw()
        show_verdict(self.console, _verdict(self.rows, outcomes))
        if self.as_json:
            print(self._json(), end="")
        failed = [one for one in self.left_out if not one.for_memory]
        wrong = [row for row in self.rows if not row.correct]
        return 1 if failed or wrong or not all(outcome.holds for outcome in outcomes) else 0

    def _take(self, case: Measured) -> None:
        self.rows += case.rows
        self.left_out += case.left_out
        self.finished += 1
        show_case(self.console, case)
        self._write()

    def _write(self) -> list[Path]:
        if self.folder is None:
            return []
        return write_tables(
            self.rows, self.left_out, self.folder, self.name, self.where, self._details()
        )

    def _written(self) -> str:
        if self.folder is None:
            return ""
        self._draw()
        return f"; they are in {self.folder}"

    def _draw(self) -> None:
        """Write the tables for good, and the picture."""
        paths = self._write()
        if not paths:
            return
        if any(row.time_ratio is not None for row in self.rows):
            from stc_video.bench.plot import draw

            folder, name = paths[0].parent, self.name
            caption = f"{self._device()}, {self.rows[0].dtype}, torch {torch.__version__}"
            try:
                paths.append(draw(self.rows, folder / f"{name}.svg", caption))
            except ModuleNotFoundError as error:
                self.console.print(
                    f"Note: no picture, because {error.name} is missing: pip install matplotlib",
                    style="yellow",
                    markup=False,
                )
        self.console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)

    def _device(self) -> str:
        device = self.grid.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()

    def _where(self) -> dict[str, object]:
        """Return the columns that say with what and on what machine a row was measured."""
        installed = versions()
        return {
            "weights": "random",
            "device": self._device(),
            "threads": torch.get_num_threads(),
            **{name: installed[name] for name in ("python", "torch", "triton", "transformers")},
            "revision": revision() or installed["stc-kernels"],
            "command": self.command,
        }

    def _details(self) -> dict[str, Any]:
        """Return what the JSON has besides the rows."""
        outcomes = judge(self.limits, self.rows)
        return {
            "schema_version": "1.0",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **self.where,
            "weights": RANDOM_WEIGHTS,
            "environment": environment(),
            "backends": self.backends,
            "contenders": {name: KINDS[name].about for name in self.grid.contenders},
            "cases": self.grid.cases,
            "finished": self.finished,
            "limits": [_outcome(one) for one in outcomes],
            "verdict": asdict(_verdict(self.rows, outcomes)),
        }

    def _json(self) -> str:
        return as_json(self.rows, self.left_out, self._details())


def _verdict(rows: Sequence[Row], outcomes: Sequence[Outcome]) -> Verdict:
    """Say where our contenders pay; a wrong one or a limit that is not kept makes it bad."""
    wrong = dict.fromkeys(row.contender for row in rows if not row.correct)
    problems = [f"{name} is wrong" for name in wrong]
    if broken := sum(not one.holds for one in outcomes):
        problems.append(f"{broken} of {len(outcomes)} limits are not kept")
    tried = [
        Tried(row.contender, f"at {case_name(row)}", row.multiply_adds, row.time_ratio)
        for row in rows
        if row.correct and KINDS[row.contender].is_ours and row.time_ratio is not None
    ]
    return best_verdict(tried, problems)


def _outcome(one: Outcome) -> dict[str, object]:
    return {**asdict(one.limit), "measured": one.measured, "holds": one.holds}
