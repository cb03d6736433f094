# SPDX-License-Identifier: Apache-2.0
"""What a cached frame should take on a GPU, from what it launches, moves and multiplies.

    python benchmarks/gpu_predicted.py      # writes gpu_counted.csv and gpu_predicted.csv
    python benchmarks/gpu_predicted.py --measured out/gpu-session/gpu_cacher.csv

The model is in docs/gpu.md: a launch costs a constant, and takes as long as its bytes at the
bandwidth of a copy or its matrix products, whichever is longer. It was written before anything was
measured; ``--measured`` compares it with what `stc bench` wrote.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from counted import Call
from counted_passes import GEOMETRY, LAYERS, PASSES, around
from environment import write_rows
from predictions import compared

RESULTS = Path(__file__).parent / "results"
STREAMS = (1, 8, 32)
#: rows and columns of the tiles that products are cut into, and the part of its rate at which a
#: multiprocessor multiplies such a tile
TILES = (((256, 128), 1.0), ((128, 128), 0.9), ((64, 128), 0.7), ((64, 64), 0.5))


@dataclass(frozen=True)
class Gpu:
    """A GPU by what its maker says of it.

    Attributes
    ----------
    bandwidth
        Of its memory, in TB/s.
    rate
        Dense bfloat16, in TFLOP/s.
    multiprocessors
        SMs, or compute units.
    """

    bandwidth: float
    rate: float
    multiprocessors: int


GPUS = {
    "H100": Gpu(3.35, 989.0, 132),
    "H200": Gpu(4.8, 989.0, 132),
    "A100": Gpu(2.04, 312.0, 108),
    "L4": Gpu(0.3, 121.0, 58),
    "MI300X": Gpu(5.3, 1307.0, 304),
}


@dataclass(frozen=True)
class Model:
    """From a call to its time.

    Attributes
    ----------
    copy_share
        What a large copy reaches of the memory's bandwidth.
    product_share
        What a large matrix product reaches of the rate.
    recorded_us, eager_us
        Cost of a launch in a graph, and of one that the host makes.
    """

    copy_share: float
    product_share: float
    recorded_us: float
    eager_us: float

    def microseconds(self, call: Call, gpu: Gpu, *, recorded: bool) -> float:
        """Time of a call: of its launches, and of the slower of memory and products."""
        launching = call.launches * (self.recorded_us if recorded else self.eager_us)
        moving = call.nbytes / (1e6 * gpu.bandwidth * self.copy_share)
        working = max(moving, self._multiplying(call, gpu))
        # The host launches ahead while the GPU works.
        return launching + working if recorded else max(launching, working)

    def _multiplying(self, call: Call, gpu: Gpu) -> float:
        """Time of the products, in whole rounds of one tile per multiprocessor."""
        if call.product is None:
            return 0.0
        count, rows, columns, depth = call.product
        rate = 1e6 * gpu.rate * self.product_share / gpu.multiprocessors
        return min(
            _rounds(count * math.ceil(rows / high) * math.ceil(columns / wide), gpu)
            * 2 * high * wide * depth / (rate * share)
            for (high, wide), share in TILES
        )  # fmt: skip


def _rounds(tiles: int, gpu: Gpu) -> int:
    return math.ceil(tiles / gpu.multiprocessors)


def passes(streams: int) -> Iterator[tuple[str, str, list[Call]]]:
    """Each contender's parts: its name, whether a graph holds the part, and its calls."""
    for name, layers_of in PASSES.items():
        yield name, "graph", layers_of(streams)
        if name in ("motion", "stc"):
            yield name, "host", around(name, streams)
    # The paper's frame is embedded as a dense one is; a graph holds all of it.


def counted_rows(model: Model) -> list[dict[str, object]]:
    """Every operator of every pass."""
    rows: list[dict[str, object]] = []
    for streams in STREAMS:
        for name, launched_by, calls in passes(streams):
            for op in dict.fromkeys(call.op for call in calls):
                own = [call for call in calls if call.op == op]
                rows.append(
                    {
                        "frame": name,
                        "streams": streams,
                        "launched_by": launched_by,
                        "op": op,
                        "launches": sum(call.launches for call in own),
                        "mib": round(sum(call.nbytes for call in own) / 2**20, 3),
                        "gflop": round(sum(call.flops for call in own) / 1e9, 3),
                        **{
                            f"{gpu}_us": round(_time(own, model, GPUS[gpu], launched_by), 1)
                            for gpu in GPUS
                        },
                    }
                )
    return rows


def _time(calls: Sequence[Call], model: Model, gpu: Gpu, launched_by: str) -> float:
    recorded = launched_by == "graph"
    return sum(model.microseconds(call, gpu, recorded=recorded) for call in calls)


def predicted_rows(counted: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Whole frames on every GPU, and what they take of a dense one."""
    table = []
    for gpu in GPUS:
        for streams in STREAMS:
            of_case = [row for row in counted if row["streams"] == streams]
            times = {
                name: sum(float(str(row[f"{gpu}_us"])) for row in of_case if row["frame"] == name)
                for name in PASSES
            }
            for name, time in times.items():
                own = [row for row in of_case if row["frame"] == name]
                launches = {
                    side: sum(int(str(r["launches"])) for r in own if r["launched_by"] == side)
                    for side in ("graph", "host")
                }
                table.append(
                    {
                        "gpu": gpu,
                        "geometry": GEOMETRY,
                        "layers": LAYERS,
                        "streams": streams,
                        "frame": name,
                        "launches_in_graph": launches["graph"],
                        "launches_by_host": launches["host"],
                        "ms": round(time / 1e3, 3),
                        "ratio_to_dense": round(time / times["dense"], 3),
                    }
                )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copy-share", type=float, default=0.9)
    parser.add_argument("--product-share", type=float, default=0.75)
    parser.add_argument("--recorded-us", type=float, default=1.5, help="a launch in a graph")
    parser.add_argument("--eager-us", type=float, default=5.0, help="a launch by the host")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measured", type=Path, help="a table of `stc bench` to compare with")
    arguments = parser.parse_args()
    if arguments.measured is not None:
        print("\n".join(compared(arguments.out / "gpu_predicted.csv", arguments.measured)))
        return
    model = Model(
        arguments.copy_share, arguments.product_share, arguments.recorded_us, arguments.eager_us
    )
    counted = counted_rows(model)
    write_rows(arguments.out / "gpu_counted.csv", counted)
    predicted = predicted_rows(counted)
    write_rows(arguments.out / "gpu_predicted.csv", predicted)
    for row in predicted:
        print(*row.values())


if __name__ == "__main__":
    main()
