# SPDX-License-Identifier: Apache-2.0
"""What it costs to notice that a tower's weights changed, as a fraction of a cached frame.

Frames of which one sixteenth changes are encoded by an attached cacher; the check that runs in
front of each of them is timed on its own, between them, so that it finds the processor's caches as
a frame leaves them. ``first_check_ms`` is the one that reads all weights, after attaching or a
change. Times are processor time, in which other work on the machine counts least.

    python benchmarks/weight_check.py --out benchmarks/results/weight_check.csv
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import mean, median

import torch
from environment import environment, write_rows

from stc_video.bench.cases import Case
from stc_video.bench.contenders import KINDS, Ours
from stc_video.bench.towers import BenchTower
from stc_video.cacher.weight_watch import ROUND, WeightWatch
from stc_video.loading.geometries import TOWERS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def seconds(call: Callable[[], object]) -> float:
    """Take the processor time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(geometry: str, dtype: str, fraction: Fraction, repeats: int) -> dict[str, object]:
    """Alternate cached frames and checks, and return one row of the table."""
    tower = BenchTower.build(geometry, dtype=DTYPES[dtype])
    case = Case.of(tower, 1, fraction)
    contender = KINDS["motion"].make(case)
    assert isinstance(contender, Ours)
    contender.start()
    contender.encode(contender.clip.turn(0))
    watch = contender.cacher._watch
    assert isinstance(watch, WeightWatch)
    frames, checks = [], []
    for number in range(repeats):
        pixels = contender.clip.turn(number + 1)
        frames.append(seconds(lambda: contender.encode(pixels)))  # noqa: B023
        checks.append(seconds(watch.look))
        if contender.problem:
            raise RuntimeError(contender.problem)
    fresh = WeightWatch(watch.tower)
    first = seconds(fresh.look)
    frame, check = median(frames), mean(checks)  # not every check looks at contents
    return {
        "tower": geometry,
        "layers": tower.layers,
        "dtype": dtype,
        "weight_mb": round(tower.weight_bytes / 1e6, 1),
        "encoded": case.rows,
        "tokens": tower.tokens,
        "cached_ms": round(1e3 * frame, 2),
        "check_ms": round(1e3 * check, 3),
        "check_ms_max": round(1e3 * max(checks), 3),
        "fraction": round(check / frame, 5),
        "first_check_ms": round(1e3 * first, 1),
        "interval": watch.interval,
        "calls_per_round": ROUND,
    }


def main() -> None:
    """Measure every combination asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--towers", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--fraction", type=Fraction, default=Fraction(1, 16))
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for geometry in arguments.towers:
        for dtype in arguments.dtypes:
            row = measure(geometry, dtype, arguments.fraction, arguments.repeats)
            print(row, flush=True)
            rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
