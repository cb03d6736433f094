#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Run the emulator's cases in two processes at once; fail if one fails or a kernel never ran.

``run.py PROGRAM FOLDER [--long] [--seed N]``: the program that ``make checked`` or ``make asan``
has built, and where the kernels that ran and the calls for ``test_references.py`` are written.
"""

from __future__ import annotations

import argparse
import re
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"

#: operator -> cases of sizes 0, 1 and 2 (small, medium, at the limits), each under three schedules
CASES: dict[str, tuple[int, int, int]] = {
    "token_cosine": (40, 1, 1),
    "select_changed": (24, 2, 2),
    "gather_rows": (80, 12, 40),
    "scatter_rows": (80, 12, 40),
    "scatter_key_value": (80, 12, 40),
    "scatter_residual": (60, 8, 30),
    "gather_layer_norm": (40, 8, 12),
    "add_layer_norm": (40, 4, 12),
    "bias_gelu": (60, 8, 30),
    "channel_variance": (40, 4, 4),
    "saliency_topk": (24, 2, 2),
    "spatial_redundancy": (30, 4, 3),
    "compact_tokens": (40, 4, 2),
    "bipartite_match": (30, 2, 1),
    "merge_tokens": (40, 4, 4),
    "sparse_query_attention": (16, 2, 1),
    "attention_column_mean": (12, 1, 1),
    "frames_to_patches": (40, 4, 4),
    "update_patches": (40, 4, 4),
}
#: what is no operator of its own -> cases
SPECIAL: dict[str, int] = {
    "streams": 4,
    "graphs": 4,
    "slots": 1,
    "dead_streams": 1,
    "empties": 1,
    "nan_threshold": 1,
    "head_widths": 1,
    "infinite_key": 1,
    "failed_launch": 1,
}
#: how many times as many with --long
LONG = 8


def jobs(long: bool) -> list[tuple[str, int, int]]:
    """Return operator, size and number of cases of each run, the longest first."""
    times = LONG if long else 1
    found = [
        (op, size, count * times)
        for size in (2, 1, 0)
        for op, count in ((op, counts[size]) for op, counts in CASES.items())
    ]
    return [*((op, 0, count * times) for op, count in SPECIAL.items()), *found]


def run(program: Path, folder: Path, job: tuple[str, int, int], seed: int, calls: bool) -> bool:
    """Run one operator's cases of one size; print what the program says."""
    op, size, count = job
    command = [str(program), "--op", op, "--size", str(size), "--cases", str(count)]
    command += ["--seed", str(seed), "--kernels", str(folder / f"{op}-{size}.kernels")]
    if calls:
        command += ["--calls", str(folder / "calls")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    print(done.stdout + done.stderr, end="", flush=True)
    if done.returncode != 0:
        print(f"FAILED with status {done.returncode}: {' '.join(command)}", flush=True)
    return done.returncode == 0


def kernels_in(program: Path) -> dict[int, str]:
    """Return address and name of every kernel of the program, each with its template arguments."""
    names = {
        match.group(1)
        for path in sorted(SOURCES.rglob("*.cu*"))
        for match in re.finditer(
            r"__global__[^(;]*?(?:\([^)]*\)\s*)?(\w+)\(const", path.read_text()
        )
    }
    listed = subprocess.run(
        ["nm", "--demangle", "--defined-only", program], capture_output=True, text=True, check=True
    ).stdout
    found = {}
    for line in listed.splitlines():
        address, kind, name = line.split(maxsplit=2)
        match = re.match(r"(?:void )?stc::cuda::(\w+)(?:<.*>)?\([^()]*\)$", name)
        if kind in "tTwW" and match and match.group(1) in names:
            found[int(address, 16)] = name.removeprefix("void ")
    missing = names - {
        re.split("[<(]", name.removeprefix("stc::cuda::"))[0] for name in found.values()
    }
    assert not missing, f"kernels that are not in the program: {sorted(missing)}"
    return found


def kernels_that_never_ran(program: Path, folder: Path) -> list[str]:
    """Return the names of those that are not among the addresses that the runs have written."""
    ran = {
        int(address, 16)
        for path in folder.glob("*.kernels")
        for address in path.read_text().split()
    }
    return sorted(name for address, name in kernels_in(program).items() if address not in ran)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--long", action="store_true", help=f"{LONG} times as many cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    (options.folder / "calls").mkdir(parents=True)
    begin = time.monotonic()
    with ThreadPoolExecutor(options.processes) as pool:
        futures = [
            pool.submit(run, options.program, options.folder, job, options.seed, not options.long)
            for job in jobs(options.long)
        ]
        passed = all([future.result() for future in futures])
    never = kernels_that_never_ran(options.program, options.folder)
    for name in never:
        print(f"NEVER RAN: {name}: add a case, or cases, to tests/emulation")
    total = sum(count for _, _, count in jobs(options.long))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    print(f"{total} cases, {time.monotonic() - begin:.0f} s, {cpu:.0f} s of CPU")
    return 0 if passed and not never else 1


if __name__ == "__main__":
    sys.exit(main())
