#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Break the kernels on purpose, one place at a time; fail if the emulator does not notice.

``mutants.py [WORDS ...]``: all of mutants.txt, or those whose name contains one of the words. The
program that ``make checked`` has built is copied, and of it what the break changes is built again.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILT = ROOT / "build" / "emulation"
WORK = ROOT / "build" / "mutants"


@dataclass(frozen=True)
class Mutant:
    """One break: its name, file in csrc, cases that must fail, and what stands for what."""

    name: str
    file: str
    cases: list[str]
    count: int
    seed: int
    old: str
    new: str


def read_mutants() -> list[Mutant]:
    """Read mutants.txt."""
    found = []
    for part in (HERE / "mutants.txt").read_text().split("#### ")[1:]:
        head, _, rest = part.partition("\n<<<<\n")
        old, _, rest = rest.partition("\n====\n")
        new = rest[: rest.index(">>>>")].removesuffix("\n")
        name, *lines = head.splitlines()
        given = dict(line.split(" ", 1) for line in lines)
        found.append(
            Mutant(
                name,
                given["file"],
                given["cases"].split(),
                int(given.get("count", 14)),
                int(given.get("seed", 1)),
                old,
                new,
            )
        )
    return found


def broken(mutant: Mutant, source: Path) -> str:
    """Return the broken text of the mutant's file."""
    text = (source / mutant.file).read_text()
    if mutant.old not in text:
        raise SystemExit(f"{mutant.name}: what it breaks is not in {mutant.file} any more")
    return text.replace(mutant.old, mutant.new)


def build(mutant: Mutant) -> Path:
    """Build the emulator with the break; return the program."""
    shutil.rmtree(WORK, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", WORK / "source")
    shutil.copytree(BUILT / "csrc", WORK / "csrc")
    shutil.copytree(BUILT / "checked", WORK / "checked", ignore=shutil.ignore_patterns("out"))
    (WORK / "source" / mutant.file).write_text(broken(mutant, ROOT / "csrc"))
    for path in WORK.glob("checked/*/*.d"):  # made for the folder that was copied
        path.write_text(path.read_text().replace("build/emulation/", "build/mutants/"))
    command = ["make", "-s", "-C", str(HERE), f"SRC={WORK / 'source'}", "B=../../build/mutants"]
    done = subprocess.run([*command, "checked"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{mutant.name}: does not compile\n{done.stderr[-2000:]}")
    return WORK / "checked" / "emulate"


def what_was_noticed(program: Path, mutant: Mutant) -> str:
    """Run the cases; return the kinds of what was found, or an empty text."""
    kinds: dict[str, None] = {}
    for op in mutant.cases:
        command = [str(program), "--op", op, "--cases", str(mutant.count), "--schedules", "2"]
        command += ["--seconds", "200", "--seed", str(mutant.seed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            kinds["hangs"] = None
            continue
        if done.returncode not in (0, 1):
            kinds[f"status {done.returncode}"] = None
        for line in done.stdout.splitlines():
            if line.startswith("FINDING"):
                kinds[re.sub(r"^FINDING x\d+ | at 0x.*", "", line)] = None
            elif line.startswith("   "):
                kinds[line.strip().split(":")[0]] = None
    return "; ".join(kinds)


def main(words: list[str]) -> int:
    if not (BUILT / "checked" / "emulate").exists():
        raise SystemExit("mutants: make emulate first")
    mutants = [m for m in read_mutants() if not words or any(word in m.name for word in words)]
    missed = []
    for mutant in mutants:
        begin = time.monotonic()
        noticed = what_was_noticed(build(mutant), mutant)
        if not noticed:
            missed.append(mutant.name)
        told = f"noticed: {noticed[:100]}" if noticed else "MISSED"
        print(f"{time.monotonic() - begin:5.0f} s  {mutant.name}: {told}", flush=True)
    print(f"{len(mutants) - len(missed)} of {len(mutants)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
