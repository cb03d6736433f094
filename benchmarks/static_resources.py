# SPDX-License-Identifier: Apache-2.0
"""Compile every GPU kernel for every architecture, without a GPU, and write what each needs.

Stops with an error if a kernel spills more than two registers, needs more shared memory than there
is, or reads and writes global memory in more instructions than the committed table says;
``--accept`` takes the new figures. What cannot be compiled, because Triton or nvcc is missing, is
named and its rows are kept::

    python benchmarks/static_resources.py     # writes benchmarks/results/static_resources.csv
    python benchmarks/static_resources.py --backend triton --only saliency_topk
    python benchmarks/static_resources.py --chosen     # not what a tuner would try; writes nothing
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from environment import write_rows
from native_resources import native_rows, nvcc, sources

import stc_kernels

RESULTS = Path(__file__).parent / "results" / "static_resources.csv"
#: what rows are listed by: native kernels by their source file
NAMES = {"triton": stc_kernels.OPS, "native": tuple(source.stem for source in sources())}
EVERYTHING = sorted({*NAMES["triton"], *NAMES["native"]})


#: two registers of a thread, which ptxas may lay aside once where a kernel begins
ALLOWED_SPILL_BYTES = 8


def failures(rows: list[dict[str, object]]) -> list[str]:
    """Say which kernels spill more than is allowed, or do not fit."""
    found = []
    for row in rows:
        what = f"{row['kernel']} of {row['op']}, {row['dtype']}, {row['target']}, {row['config']}"
        if int(row["spill_bytes"]) > ALLOWED_SPILL_BYTES:
            found.append(f"spills {row['spill_bytes']} bytes: {what}")
        if int(row["shared_bytes"]) > int(row["limit_shared_bytes"]):
            found.append(f"needs {row['shared_bytes']} bytes of shared memory: {what}")
    return found


def slower(rows: list[dict[str, object]], committed: Path) -> list[str]:
    """Say which kernels access global memory in more instructions than the table says."""
    before: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in _read(committed):
        if row.get("loads"):  # else it was written before these were counted
            before.setdefault(_key(row), []).append(row)
    found = []
    for row in rows:
        if int(str(row.get("local_accesses") or 0)):
            found.append(f"uses local memory: {' '.join(_key(row))}")
        for kind in ("loads", "stores"):
            # One kernel may be compiled twice with the same parameters, for other arguments.
            old = max(
                before.get(_key(row), ()), key=lambda one: _instructions(one, kind), default=None
            )
            if old is not None and _instructions(row, kind) > _instructions(old, kind):
                found.append(f"{kind} {row[kind]}, were {old[kind]}: {' '.join(_key(row))}")
    return found


def _key(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("op", "kernel", "dtype", "target", "config"))


def _instructions(row: Mapping[str, object], kind: str) -> int:
    """How many instructions ``16:4 2:1`` are."""
    return sum(int(part.partition(":")[2]) for part in str(row.get(kind) or "").split())


def _read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def rows_of_others(path: Path, backends: set[str], only: list[str]) -> list[dict[str, object]]:
    """Rows of an existing table that are not about these backends, or not about these operators."""
    rows = [row for row in _read(path) if row["op"] in NAMES[row["backend"]]]
    return [dict(row) for row in rows if row["backend"] not in backends or row["op"] not in only]


def place(row: dict[str, object]) -> tuple[str, int]:
    """Where a row stands in the table, however much of it was made in this run."""
    backend = str(row["backend"])
    return backend, NAMES[backend].index(str(row["op"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--backend", choices=("triton", "native", "all"), default="all")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="OP",
        choices=EVERYTHING,
        help="operators, or files of csrc/cuda; the other rows are kept; default: all",
    )
    parser.add_argument(
        "--chosen",
        action="store_true",
        help="Triton kernels as they are without a tuner; nothing is written",
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--accept", action="store_true", help="new figures of accesses to memory")
    arguments = parser.parse_args()
    only = arguments.only or EVERYTHING
    wanted = {"triton", "native"} if arguments.backend == "all" else {arguments.backend}
    rows: list[dict[str, object]] = []
    if "triton" in wanted and importlib.util.find_spec("triton") is None:
        print("skipped the Triton kernels: Triton is not installed")
        wanted.discard("triton")
    if "native" in wanted and nvcc() is None:
        print("skipped the CUDA kernels: nvcc was not found")
        wanted.discard("native")
    if "triton" in wanted:
        from triton_resources import triton_rows

        rows += triton_rows(arguments.processes, only, candidates=not arguments.chosen)
    if "native" in wanted:
        rows += native_rows(arguments.processes, only)
    bad = failures(rows) + ([] if arguments.accept else slower(rows, RESULTS))
    if rows and not arguments.chosen:
        every = sorted([*rows_of_others(arguments.out, wanted, only), *rows], key=place)
        columns = dict.fromkeys(name for row in every for name in row)
        write_rows(arguments.out, [{name: row.get(name, "") for name in columns} for row in every])
    print(
        f"{len(rows)} compilations ({', '.join(sorted(wanted))}): {len(bad)} are not as they must"
    )
    if bad:
        raise SystemExit("\n".join(bad))


if __name__ == "__main__":
    main()
