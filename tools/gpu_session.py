# SPDX-License-Identifier: Apache-2.0
"""Everything that only a GPU can tell, in one session of at most 25 minutes.

    python tools/gpu_session.py --out build/gpu-session             # `make gpu-session`
    python tools/gpu_session.py --out build/gpu-session --only cacher tuner
    python tools/gpu_session.py --out build/dry-run --pretend       # a dry run on a CPU

For a machine with CUDA, torch 2.11 and Triton 3.6 or newer, and no network; what else is needed
comes in wheels/, see tools/pack_wheels.py. Each step has a time of its own, and is stopped when
that is over. OUT/session.md, OUT/steps.csv, the steps' tables and OUT/logs are written as it goes,
so that what was finished is there however the session ends; steps can be run in several sessions,
with the same OUT.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from gpu_page import Outcome, write_page
from gpu_steps import SITE, STEPS, Step

ROOT = Path(__file__).resolve().parents[1]
#: for a step to write what it has when its time is over
GRACE_SECONDS = 10


def run(step: Step, out: Path, seconds: float, pretend: bool) -> Outcome:
    """Run one step for at most so many seconds; its output goes into OUT/logs."""
    template = step.pretended if pretend else step.command
    command = [part.format(out=out) for part in template]
    if shutil.which(command[0]) is None:
        return Outcome(step.name, "skipped", 0.0, f"{command[0]} is not on the path")
    log = log_of(step, out)
    start = time.monotonic()
    with log.open("w") as file:
        file.write(f"$ {' '.join(command)}\n")
        file.flush()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(step),
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
            status, note = ("passed", "") if code == 0 else ("failed", f"exit code {code}")
        except subprocess.TimeoutExpired:
            status, note = "cut", f"stopped after {seconds:.0f} s"
        finally:
            stop(process)
    if lines := telling(log):
        note = f"{note}; {lines}" if note else lines
    return Outcome(step.name, status, round(time.monotonic() - start, 1), note)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a step and all that it started: as Ctrl-C does first, so that it keeps what it has."""
    for number, seconds in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            continue


def environment(step: Step) -> dict[str, str]:
    """Variables of a step: this checkout first, then what was installed for the session."""
    paths = [str(ROOT), str(ROOT / "python"), str(ROOT / SITE), os.environ.get("PYTHONPATH", "")]
    python_path = os.pathsep.join(path for path in paths if path)
    return {**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1", **step.environment}


def log_of(step: Step, out: Path) -> Path:
    """Where a step's output goes."""
    return out / "logs" / f"{step.name.replace(' ', '_')}.log"


def telling(log: Path) -> str:
    """The line at the end of a log that sums it up."""
    lines = [line.strip(" =") for line in log.read_text(errors="replace").splitlines()[1:]]
    return next((line[:160] for line in reversed(lines) if line), "")


def read_outcomes(path: Path) -> dict[str, Outcome]:
    """What earlier sessions into the same folder left."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        row["step"]: Outcome(row["step"], row["status"], float(row["seconds"]), row["note"])
        for row in rows
    }


def write_outcomes(path: Path, outcomes: dict[str, Outcome]) -> None:
    """Replace the table of steps; it is whole at any time."""
    temporary = path.with_suffix(".part")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("step", "status", "seconds", "note"))
        for step in STEPS:
            if found := outcomes.get(step.name):
                writer.writerow((found.step, found.status, found.seconds, found.note))
    temporary.replace(path)


def session(out: Path, steps: list[Step], seconds: float, pretend: bool) -> bool:
    """Run steps one after the other until the time is over; whether all of them passed."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    table = out / "steps.csv"
    outcomes = read_outcomes(table)
    end = time.monotonic() + seconds

    def keep(outcome: Outcome) -> None:
        outcomes[outcome.step] = outcome
        write_outcomes(table, outcomes)
        write_page(out, STEPS, outcomes, pretend)

    for step in steps:
        left = end - time.monotonic() - GRACE_SECONDS
        if left <= 0:
            outcome = Outcome(step.name, "not reached", 0.0, "the session's time was over")
        else:
            # What is read if the machine goes away while it runs.
            keep(Outcome(step.name, "cut", 0.0, "the session ended while this ran"))
            outcome = run(step, out, min(step.seconds, left), pretend)
        keep(outcome)
        print(f"{outcome.status:12} {outcome.seconds:6.1f} s  {step.name}: {outcome.note}")
    print(f"written: {out / 'session.md'}")
    return all(outcomes[step.name].status == "passed" for step in steps)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="STEP",
                        help=f"steps to run: {', '.join(names)}; default: all")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=1500.0, help="of the whole session")
    parser.add_argument("--pretend", action="store_true", help="a dry run on a CPU")
    arguments = parser.parse_args()
    if not arguments.pretend:
        import torch

        if not torch.cuda.is_available():
            parser.error("torch sees no GPU; --pretend is a dry run without one")
    steps = [step for step in STEPS if step.name in arguments.only]
    done = session(arguments.out.resolve(), steps, arguments.seconds, arguments.pretend)
    sys.exit(0 if done else 1)


if __name__ == "__main__":
    main()
