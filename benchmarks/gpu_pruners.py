# SPDX-License-Identifier: Apache-2.0
"""Every pruner of exact count on a GPU: device time per frame, inside a CUDA graph.

One frame of a stream at a time, with the state that the frames before it left. Times are of
replays with a cold L2 cache::

    python benchmarks/gpu_pruners.py        # writes benchmarks/results/gpu_pruners.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from gpu_ops import triton_version
from gpu_timing import empty_launch, graph_of, time_replay

import stc_kernels
from stc_video import make_pruner
from stc_video.pruners import Attention

RESULTS = Path(__file__).parent / "results" / "gpu_pruners.csv"
GRID, WIDTH, HEADS, HEAD_WIDTH = (14, 14), 3584, 16, 72
#: what a frame may take, in microseconds
GOAL = 30.0

PRUNERS: dict[str, dict[str, Any]] = {
    "stc": {},
    "stc (gaussian)": {"method": "gaussian"},
    "dtd": {},
    "streaming_assistant": {},
    "vidcom2": {},
    "visionzip": {},
    "tome": {},
    "evs": {},
    "uniform": {},
    "random": {},
}


def frame_of(name: str, kept: int, dtype: torch.dtype) -> Callable[[], object]:
    """One call of a pruner that has seen two frames."""
    tokens = GRID[0] * GRID[1]
    features = torch.randn(1, tokens, WIDTH, device="cuda").to(dtype)
    heads = torch.randn(2, 1, tokens, HEADS, HEAD_WIDTH, device="cuda").to(dtype)
    attention = Attention(heads[0], heads[1])
    pruner = make_pruner(name.split()[0], tokens_per_frame=kept, **PRUNERS[name])
    for _ in range(2):
        pruner(features, GRID, attention=attention)
    return lambda: pruner(features, GRID, attention=attention)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pruner", nargs="+", choices=list(PRUNERS), default=list(PRUNERS))
    parser.add_argument("--tokens-per-frame", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_pruners.py measures on a GPU, and torch sees none")
    facts = {**environment(), "device": torch.cuda.get_device_name(), "triton": triton_version()}
    empty = empty_launch()
    print(f"empty graph {empty:.2f} us on {facts['device']}")
    backends = [b for b in ("native", "triton")
                if b in stc_kernels.available_backends("gather_rows", "cuda")]  # fmt: skip
    table: list[dict[str, object]] = []
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            for name in arguments.pruner:
                call = frame_of(name, arguments.tokens_per_frame, dtype)
                time = time_replay(graph_of(call))
                table.append(
                    {
                        "pruner": name,
                        "shape": f"1x{GRID[0] * GRID[1]}x{WIDTH}",
                        "kept": arguments.tokens_per_frame,
                        "dtype": str(dtype).removeprefix("torch."),
                        "median_us": round(time.median, 2),
                        "p20_us": round(time.p20, 2),
                        "p80_us": round(time.p80, 2),
                        "empty_graph_us": round(empty, 2),
                        "within_goal": time.median <= GOAL,
                        "backends": " ".join(backends),
                        **facts,
                    }
                )
                write_rows(arguments.out, table)  # whatever happens next is kept
                print(f"{name:20} {table[-1]['dtype']:9} {time.median:8.2f} us")


if __name__ == "__main__":
    main()
