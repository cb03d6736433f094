# SPDX-License-Identifier: Apache-2.0
"""Every operator on a GPU: plain PyTorch, torch.compile, Triton and native kernels.

Each backend is compared with the float32 reference before it is timed. Times are of replays of a
CUDA graph with a cold L2 cache; the bandwidth is of the bytes that any implementation must move,
next to that of a copy measured in the same run::

    python benchmarks/gpu_ops.py            # writes benchmarks/results/gpu_ops.csv
    python benchmarks/plot_gpu_ops.py       # draws it
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from gpu_timing import Timing, copy_bandwidth, empty_launch, graph_of, time_replay
from plain_ops import PLAIN, values_of
from rich.progress import Progress
from torch import Tensor

import stc_kernels
from stc_kernels import _examples
from stc_kernels._examples import Geometry

RESULTS = Path(__file__).parent / "results" / "gpu_ops.csv"
DTYPE = torch.bfloat16
#: relative to the largest value of the result
TOLERANCE = 2e-2
#: what the inputs of one case may take
LARGEST_BYTES = 16 * 1024**3


def least_bytes(op: str, g: Geometry, itemsize: int) -> int:
    """Bytes that must be moved: every input that is needed read once, every output written once."""
    frame = g.tokens * g.channels * itemsize
    rows = g.k * g.channels * itemsize
    picture = 25 * g.tokens * g.channels // 4
    per_frame = {
        "token_cosine": 2 * frame + 4 * g.tokens,
        "select_changed": 2 * frame + 4 * g.tokens + 4 * g.k,
        "select_changed_below": 2 * frame + 4 * g.tokens + 4 * g.k,
        "gather_rows": 2 * rows + 4 * g.k,
        "scatter_rows_": 2 * rows + 4 * g.k,
        "gather_layer_norm": 2 * rows + 4 * g.k,
        "scatter_residual": 3 * frame + 4 * g.k,  # of the update or the new rows one is read
        "sparse_query_attention": 2 * frame + 2 * rows,
        "add_layer_norm": 4 * rows,
        "bias_gelu": 8 * rows,
        "scatter_key_value_": 4 * rows + 4 * g.k,
        "channel_variance": frame,
        "saliency_topk": frame + 4 * g.tokens + 4 * g.k,
        "spatial_redundancy": frame + 4 * g.tokens,
        "compact_tokens": g.tokens + 2 * rows + 4 * g.k,
        "bipartite_match": frame + 12 * g.tokens,
        "merge_tokens": frame + frame // 3 + 8 * g.tokens,
        "attention_column_mean": 2 * frame + 4 * g.tokens,
        "frames_to_patches": picture + frame,
        "update_patches_": 2 * picture + frame // 36,  # of each side a sixth has changed
    }
    return g.batch * per_frame[op]


def cases(ops: list[str], batches: list[int]) -> Iterator[tuple[str, str, Geometry]]:
    for op in ops:
        for name, geometry in _examples.geometries(op).items():
            for batch in batches:
                yield op, name, replace(geometry, batch=batch)


def contenders(op: str) -> dict[str, Callable[..., Any]]:
    """The implementations that run here, by name."""
    torch.compiler.reset()
    found: dict[str, Callable[..., Any]] = {
        "eager": PLAIN[op],
        "compile": torch.compile(PLAIN[op], fullgraph=True, dynamic=False),
    }
    overload = getattr(torch.ops.stc_kernels, op).default
    for backend in ("triton", "native"):
        if backend in stc_kernels.available_backends(op, "cuda"):
            found[backend] = lambda *args, backend=backend: overload(*args, backend=backend)
    return found


def copies(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in arguments)


def results(op: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Tensor]:
    given = copies(arguments)
    return values_of(op, function(*given), given)


def check(op: str, name: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Stop if a backend of ours differs from the reference."""
    overload = getattr(torch.ops.stc_kernels, op).default
    expected = results(op, lambda *args: overload(*args, backend="reference"), arguments)
    for got, right in zip(results(op, function, arguments), expected, strict=True):
        # Infinities must be equal, such as the score of a token without neighbours.
        error = torch.where(got == right, 0.0, (got.float() - right.float()).abs()).max()
        largest = right[right.isfinite()].float().abs().max()
        if not error <= TOLERANCE * largest:
            raise SystemExit(f"{op}: {name} is off by {error}")


def measure(op: str, geometry: Geometry) -> dict[str, Timing]:
    arguments = _examples.arguments(op, geometry, DTYPE, "cuda")
    times = {}
    for name, function in contenders(op).items():
        if name in ("triton", "native"):
            check(op, name, function, arguments)
        times[name] = time_replay(graph_of(lambda function=function: function(*arguments)))
    return times


def rows_of(
    op: str, name: str, geometry: Geometry, times: dict[str, Timing], copy: float, empty: float
) -> list[dict[str, object]]:
    moved = least_bytes(op, geometry, DTYPE.itemsize)
    baseline = min(times[plain].median for plain in ("eager", "compile"))
    return [
        {
            "op": op,
            "geometry": name,
            "batch": geometry.batch,
            "shape": f"{geometry.batch}x{geometry.tokens}x{geometry.channels}",
            "k": geometry.k,
            "dtype": str(DTYPE).removeprefix("torch."),
            "backend": backend,
            "median_us": round(time.median, 2),
            "p20_us": round(time.p20, 2),
            "p80_us": round(time.p80, 2),
            "speedup_over_best_plain": round(baseline / time.median, 2),
            "bytes": moved,
            "share_of_copy_bandwidth": round(1e6 * moved / time.median / copy, 3),
            "ratio_to_floor": round(time.median / (empty + 1e6 * moved / copy), 2),
            "copy_gb_s": round(copy / 1e9),
            "empty_graph_us": round(empty, 2),
        }
        for backend, time in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=stc_kernels.OPS, default=list(PLAIN))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_ops.py measures on a GPU, and torch sees none")
    facts = {**environment(), "device": torch.cuda.get_device_name(), "triton": triton_version()}
    copy, empty = copy_bandwidth(), empty_launch()
    print(f"copy {copy / 1e9:.0f} GB/s, empty graph {empty:.2f} us on {facts['device']}")
    todo = list(cases(arguments.op, arguments.batch))
    table: list[dict[str, object]] = []
    with torch.inference_mode(), Progress() as progress:
        task = progress.add_task("measuring", total=len(todo))
        for op, name, geometry in todo:
            progress.advance(task)
            if 4 * geometry.batch * geometry.tokens * geometry.channels * 4 > LARGEST_BYTES:
                progress.console.print(f"{op} {name} x{geometry.batch}: left out, too large")
                continue
            rows = rows_of(op, name, geometry, measure(op, geometry), copy, empty)
            table += [{**row, **facts} for row in rows]
            write_rows(arguments.out, table)  # whatever happens next is kept
            line = "  ".join(f"{row['backend']} {row['median_us']}" for row in rows)
            progress.console.print(f"{op:24} {name:18} x{geometry.batch:<3} {line}")


def triton_version() -> str:
    import triton

    version: str = triton.__version__
    return version


if __name__ == "__main__":
    main()
