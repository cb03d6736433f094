# SPDX-License-Identifier: Apache-2.0
"""Time of a cached frame as a fraction of a dense one, on a CPU, in SigLIP-so400m's geometry.

The dense tower is the unpatched Hugging Face model with scaled-dot-product attention, once as it is
and once under `torch.compile`. Dense, compiled and cached frames alternate in one process, so that
the ratios hold when the machine's speed drifts. It is `stc bench` in one table of its own.

    python benchmarks/cpu_cacher.py --out benchmarks/results/cpu_cacher.csv
"""

from __future__ import annotations

import argparse
import math
from fractions import Fraction
from pathlib import Path

import torch
from environment import environment, write_rows

import stc_kernels
from stc_video.bench.cases import Case
from stc_video.bench.run import Prepared, prepare, time_case
from stc_video.bench.timing import Spread, compare
from stc_video.bench.towers import BenchTower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSE, COMPILED = "dense-eager", "dense-compiled"


def measure(case: Case, policy: str, dense: dict[str, Prepared], repeats: int) -> dict[str, object]:
    """Alternate dense and cached frames and return one row of the table."""
    made = {**dense, policy: prepare(policy, case)}
    for name, one in made.items():
        if not one.verdict.is_correct:
            raise RuntimeError(f"{name} is wrong: {one.verdict}")
    contenders = {name: one.contender for name, one in made.items()}
    times = time_case(contenders, torch.device("cpu"), repeats)
    if problem := contenders[policy].problem:
        raise RuntimeError(f"{policy}: {problem}")
    ms = {name: round(1e3 * Spread.of(taken).median, 2) for name, taken in times.items()}
    ratio = compare(times[policy], times[DENSE])
    is_compiled = COMPILED in times
    return {
        "policy": policy,
        "fraction": float(case.ratio),
        "dtype": str(case.tower.weight.dtype).removeprefix("torch."),
        "layers": case.tower.layers,
        "encoded": case.rows,
        "dense_ms": ms[DENSE],
        "cached_ms": ms[policy],
        "ratio": round(ratio.median, 4),
        "ratio_p20": round(ratio.spread.p20, 4),
        "ratio_p80": round(ratio.spread.p80, 4),
        "compiled_ms": ms[COMPILED] if is_compiled else math.nan,
        "ratio_to_compiled": round(compare(times[policy], times[COMPILED]).median, 4)
        if is_compiled
        else math.nan,
        "limit": round(contenders[policy].cost, 4),
        "backend": stc_kernels.available_backends("select_changed").available[0],
    }


def main() -> None:
    """Measure every combination asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["motion", "stc"])
    parser.add_argument("--fractions", nargs="+", type=Fraction, default=["1/4", "1/8", "1/16"])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fractions = [Fraction(fraction) for fraction in arguments.fractions]
    rows = []
    for dtype in arguments.dtypes:
        tower = BenchTower.build("siglip-so400m", layers=arguments.layers, dtype=DTYPES[dtype])
        cases = [Case.of(tower, 1, fraction) for fraction in fractions]
        names = [DENSE] if arguments.no_compiled else [DENSE, COMPILED]
        dense = {name: prepare(name, cases[0]) for name in names}
        for policy in arguments.policies:
            for case in cases:
                row = measure(case, policy, dense, arguments.repeats)
                print(row, flush=True)
                rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
