# SPDX-License-Identifier: Apache-2.0
"""What every Triton kernel needs in every configuration, for every architecture, without a GPU."""

from __future__ import annotations

import multiprocessing
import os

# Kernels are compiled here, whatever the tests that run beside this are told.
os.environ["TRITON_INTERPRET"] = "0"
# Fused multiply-add, as the newest Triton no longer assumes.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from rich.progress import track

from stc_kernels import _examples, _triton, _tuning
from stc_kernels._triton._candidates import CANDIDATES, TUNED_KERNELS
from stc_kernels._triton._compile import TARGETS, compile_launch, source_of
from stc_kernels._triton._launch import Launch, record

#: with heads of 256 channels, the most that the attention takes
WIDEST_HEADS = _examples.Geometry(tokens=257, channels=512, k=64, heads=2)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def launches_to_compile(only: list[str], candidates: bool) -> list[tuple[str, str, Launch]]:
    """Every launch of these operators that differs from the others in what is compiled.

    Each is (operator, dtype, launch). With candidates they have all that a tuner would try.
    """
    found: dict[tuple[str, str, str], tuple[str, str, Launch]] = {}
    chosen = set()

    def add(op: str, dtype: str, geometry: _examples.Geometry, is_chosen: bool = True) -> None:
        arguments = _examples.arguments(op, geometry, DTYPES[dtype], "meta")
        with record() as launches:
            _triton.implementation(op)(*arguments)
        for launch in launches:
            key = op, dtype, fingerprint(launch)
            found.setdefault(key, (op, dtype, launch))
            if is_chosen:
                chosen.add(key)

    for op in [op for op in _triton.OPS if op in only]:
        if op == "sparse_query_attention":
            for dtype in DTYPES:
                add(op, dtype, WIDEST_HEADS)
        for geometry in _examples.geometries(op).values():
            for dtype in DTYPES:
                add(op, dtype, geometry)
            # float16 differs from bfloat16 in the names of instructions only.
            for dtype in ("bfloat16", "float32"):
                for kernel in TUNED_KERNELS[op]:
                    for parameters in CANDIDATES[kernel]:
                        with _tuning.forced(kernel, parameters):
                            add(op, dtype, geometry, is_chosen=False)
    return [launch for key, launch in found.items() if candidates or key in chosen]


def fingerprint(launch: Launch) -> str:
    """What distinguishes two compilations."""
    source = source_of(launch)
    return f"{launch.kernel.__name__} {source.signature} {source.constants} {launch.options}"


def compile_one(job: tuple[int, str]) -> dict[str, object]:
    """Compile one launch for one architecture; a row of the table."""
    number, target = job
    op, dtype, launch = _LAUNCHES[number]
    needs = compile_launch(launch, target)
    constants = {**launch.constants, **launch.options}
    return {
        "backend": "triton",
        "op": op,
        "kernel": launch.kernel.__name__.strip("_"),
        "config": " ".join(f"{name}={value}" for name, value in constants.items()),
        "dtype": dtype,
        "target": target,
        "registers": needs.registers,
        "spill_bytes": needs.spill_bytes,
        "shared_bytes": needs.shared_bytes,
        "stack_bytes": needs.stack_bytes,
        "loads": widths(needs.accesses.loads),
        "stores": widths(needs.accesses.stores),
        "accesses_per_kib": round(needs.accesses.per_kib, 1),
        "local_accesses": needs.accesses.local,
        "limit_shared_bytes": TARGETS[target][1],
    }


def widths(accesses: dict[int, int]) -> str:
    """Write accesses by their bytes, the widest first: ``16:4 2:1``."""
    return " ".join(f"{size}:{number}" for size, number in sorted(accesses.items(), reverse=True))


_LAUNCHES: list[tuple[str, str, Launch]] = []


def triton_rows(processes: int, only: list[str], candidates: bool) -> list[dict[str, object]]:
    """Compile the Triton kernels of these operators; a row per kernel, parameters and target."""
    _LAUNCHES.extend(launches_to_compile(only, candidates))
    jobs = [(number, target) for number in range(len(_LAUNCHES)) for target in TARGETS]
    # Forked, so that the workers have the launches, which cannot be sent.
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        results = pool.imap(compile_one, jobs, chunksize=4)
        rows = list(track(results, "triton", total=len(jobs)))
    return [{**row, "triton": triton.__version__} for row in rows]
