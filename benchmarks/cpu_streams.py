# SPDX-License-Identifier: Apache-2.0
"""Many streams on a CPU: one call for all of them, ragged or bucketed, against one call each.

Each stream's frames differ in another share of their patches. The three ways take turns in one
process, so that the ratios hold when the machine's speed drifts.

    python benchmarks/cpu_streams.py --out benchmarks/results/cpu_streams.csv
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from environment import environment, write_rows
from torch import Tensor

import stc_video
from stc_video import CacheConfig
from stc_video.bench.frames import make_clip
from stc_video.bench.timing import Stopwatch
from stc_video.bench.towers import BenchTower

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

#: share of the patches that change, stream by stream
CHANGES = (1 / 32, 1 / 16, 1 / 10, 1 / 8, 1 / 6, 1 / 5, 1 / 4, 1 / 3)


def measure(streams: int, dtype_name: str, layers: int, repeats: int) -> dict[str, object]:
    """Take the time of the three ways and return one row of the table."""
    stock = BenchTower.build("siglip-so400m", layers=layers, dtype=DTYPES[dtype_name])
    changes = [CHANGES[number * len(CHANGES) // streams] for number in range(streams)]
    patches = [int(change * stock.tokens) for change in changes]
    clips = [make_clip(stock, 1, count, seed=number) for number, count in enumerate(patches)]
    frames = [torch.cat([clip.turn(turn) for clip in clips]) for turn in (0, 1)]
    stopwatch = Stopwatch(torch.device("cpu"))
    names = [str(number) for number in range(streams)]
    config = {"refresh": 0.0, "tail_layers": 0, "max_streams": streams, "audits": False}
    runs = {}
    for way in ("ragged", "bucketed", "alone"):
        batching = "ragged" if way == "alone" else way
        tower = stock.twin()
        runs[way] = tower, stc_video.attach_cacher(tower, CacheConfig(batching=batching, **config))

    def together(way: str, shown: Tensor) -> None:
        tower, cacher = runs[way]
        with cacher.streams(names):
            tower(shown)

    def alone(shown: Tensor) -> None:
        tower, cacher = runs["alone"]
        for number, name in enumerate(names):
            with cacher.streams([name]):
                tower(shown[number, None])

    times: dict[str, list[float]] = {way: [] for way in runs}
    with torch.inference_mode():
        for turn in range(repeats + 2):
            shown = frames[turn % 2]
            for way in runs:
                call = (lambda: alone(shown)) if way == "alone" else lambda: together(way, shown)  # noqa: B023
                took = stopwatch.seconds(call)
                if turn > 1:  # the first pair is dense and warms up
                    times[way].append(took)
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        "streams": streams,
        "dtype": dtype_name,
        "layers": layers,
        "cost": round(statistics.fmean(r.cost for r in runs["ragged"][1].last_frames), 4),
        **{f"{way}_ms": round(1e3 * value, 2) for way, value in medians.items()},
        "ragged_to_alone": round(medians["ragged"] / medians["alone"], 4),
        "bucketed_to_alone": round(medians["bucketed"] / medians["alone"], 4),
    }


def main() -> None:
    """Measure every number of streams asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in arguments.dtypes:
        for streams in arguments.streams:
            row = measure(streams, dtype, arguments.layers, arguments.repeats)
            print(row, flush=True)
            rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
