# SPDX-License-Identifier: Apache-2.0
"""`stc bench`: from what is to be measured to tables, files and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from stc_kernels import use_backend
from stc_video.bench.contenders import KINDS
from stc_video.bench.grid import Grid
from stc_video.bench.limits import Limit, Outcome, judge, read_limits
from stc_video.bench.run import measure, steps
from stc_video.bench.table import Measured, NotMeasured, Row, as_json, write_tables
from stc_video.cli.bench_view import case_name, show_case, show_limits
from stc_video.cli.environment import chosen_backends, cpu_name, environment, revision, versions
from stc_video.cli.output import collected_warnings, prepare_folder, show_verdict
from stc_video.cli.progress import bars
from stc_video.cli.stop import INTERRUPTED, Stop
from stc_video.report.verdict import Tried, Verdict, best_verdict

__all__ = ["Output", "run_bench"]

_EVERYWHERE = ("token_cosine", "select_changed", "gather_rows", "scatter_rows_", "scatter_residual")
#: operators of a cached frame, by the type of the device
_OPS = {
    "cpu": _EVERYWHERE,
    "cuda": (*_EVERYWHERE, "sparse_query_attention", "scatter_key_value_"),
}
RANDOM_WEIGHTS = "random weights of unit gain, random frames: a time, not a quality"


@dataclass(frozen=True)
class Output:
    """Where the results go.

    Attributes
    ----------
    folder, name
        Files are FOLDER/NAME.csv and so on; no folder, no files.
    limits
        A table of limits to judge by.
    as_json
        Whether standard output is JSON, and everything else goes to standard error.
    command
        The command line, for the files.
    """

    folder: Path | None = None
    name: str = "bench"
    limits: Path | None = None
    as_json: bool = False
    command: str = ""


def run_bench(
    grid: Grid, output: Output, *, backend: str | None = None, threads: int | None = None
) -> int:
    """Measure every case, show it, and write the files after each.

    Parameters
    ----------
    grid
        What is measured.
    output
        Where the results go.
    backend
        What our operators run on; the best one each by default.
    threads
        CPU threads; torch's choice by default.

    Returns
    -------
    int
        The exit code: 0 done, 1 a contender was wrong or could not run or a limit was not kept,
        130 interrupted; what was finished by then is kept.

    Raises
    ------
    ValueError, OSError
        For bad input, before anything is measured.
    """
    limits = _limits(grid, output)
    if Path(output.name).name != output.name:
        raise ValueError(f"--name must be the name of a file, got {output.name!r}")
    if output.folder is not None:
        prepare_folder(output.folder)
    if threads is not None:
        torch.set_num_threads(threads)
    with use_backend(backend) if backend else nullcontext():
        backends = chosen_backends(grid.device.type, backend)
        run = _Run(grid, output, limits, backends)
        stop = Stop()
        try:
            with stop, collected_warnings() as notes:
                run.measure(stop)
        except KeyboardInterrupt:
            run.stopped()
            return INTERRUPTED
    return run.close(notes)


class _Run:
    """A run under way, and what came out so far."""

    def __init__(
        self, grid: Grid, output: Output, limits: Sequence[Limit], backends: dict[str, str]
    ) -> None:
        self.grid, self.output, self.limits, self.backends = grid, output, limits, backends
        self.console = Console(highlight=False, stderr=output.as_json)
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
        if self.finished and self.output.as_json:
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
        if self.output.as_json:
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
        folder = self.output.folder
        if folder is None:
            return []
        return write_tables(
            self.rows, self.left_out, folder, self.output.name, self.where, self._details()
        )

    def _written(self) -> str:
        if self.output.folder is None:
            return ""
        self._draw()
        return f"; they are in {self.output.folder}"

    def _draw(self) -> None:
        """Write the tables for good, and the picture."""
        paths = self._write()
        if not paths:
            return
        if any(row.time_ratio is not None for row in self.rows):
            from stc_video.bench.plot import draw

            folder, name = paths[0].parent, self.output.name
            caption = f"{self._device()}, {self.rows[0].dtype}, torch {torch.__version__}"
            try:
                paths.append(draw(self.rows, folder / f"{name}.svg", caption))
            except ModuleNotFoundError as error:
                self.console.print(
                    f"Note: no picture, because {error.name} is missing: "
                    "pip install 'stc-kernels[bench]'",
                    style="yellow",
                    markup=False,
                )
        self.console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, markup=False)

    def _device(self) -> str:
        device = self.grid.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()

    def _where(self) -> dict[str, object]:
        """Columns that say with what and on what machine a row was measured."""
        found = versions()
        return {
            "weights": "random",
            "device": self._device(),
            "threads": torch.get_num_threads(),
            **{name: found[name] for name in ("python", "torch", "triton", "transformers")},
            "revision": revision() or found["stc-kernels"],
            "command": self.output.command,
        }

    def _details(self) -> dict[str, Any]:
        """What the JSON says besides the rows."""
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


def _limits(grid: Grid, output: Output) -> list[Limit]:
    if output.limits is None:
        return []
    if grid.layers is not None:
        raise ValueError("--limits hold for whole towers: leave --layers out")
    return read_limits(output.limits)


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
