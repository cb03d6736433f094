# SPDX-License-Identifier: Apache-2.0
"""What the self-check of a cached tower costs: in its first frame, and in those after it.

First frames with and without the check are those of cachers attached afresh, in turns; the dense
frames between them are the stock tower's. Cached frames alternate between two cachers of the same
tower's twins, of which one has its check taken out. Ratios are of frames next to each other, so
that they hold when the machine's speed drifts.

    python benchmarks/self_check.py --out benchmarks/results/self_check.csv
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from stc_video import CacheConfig, attach_cacher
from stc_video.bench.timing import compare

SIDE, PATCH = 14, 16


class Unchecked:
    """In place of a self-check: hands out what the cacher computed and looks at nothing."""

    is_running = False

    def enter(self, module: nn.Module) -> None:
        """Nothing."""

    def around(self, *_: Any, **__: Any) -> nullcontext[None]:
        """Nothing."""
        return nullcontext()

    def meet(self, *_: Any) -> None:
        """Nothing."""

    def hand_out(self, _number: int, given: Tensor, output: Tensor | None, _rest: Any) -> Tensor:
        """The output of a block, or its input if nobody asked for it."""
        return given if output is None else output


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call: others on the machine do not count."""
    start = time.process_time()
    with torch.inference_mode():
        call()
    return time.process_time() - start


def attached(tower: nn.Module, config: CacheConfig, checked: bool) -> Any:
    """Attach a cacher, with or without its self-check."""
    cacher = attach_cacher(tower, config)
    if not checked:
        cacher._self_check = Unchecked()  # type: ignore[assignment]
    return cacher


def first_frames(
    tower: nn.Module, config: CacheConfig, frame: Tensor, repeats: int
) -> dict[str, list[float]]:
    """Times of dense frames, and of first frames without and with the check, in turns."""
    times: dict[str, list[float]] = {"dense": [], "without": [], "with": []}
    for _ in range(repeats + 1):
        times["dense"].append(seconds(lambda: tower(frame)))
        for name in ("without", "with"):
            cacher = attached(tower, config, name == "with")
            times[name].append(seconds(lambda: tower(frame)))
            cacher.detach()
    return {name: taken[1:] for name, taken in times.items()}


def cached_frames(tower: nn.Module, config: CacheConfig, repeats: int) -> dict[str, list[float]]:
    """Times of cached frames without and with the check, in turns."""
    towers = {"without": tower, "with": copy.deepcopy(tower)}
    for name, one in towers.items():
        attached(one, config, name == "with")
    generator = torch.Generator().manual_seed(0)
    frame = torch.randn((1, 3, SIDE * PATCH, SIDE * PATCH), generator=generator)
    times: dict[str, list[float]] = {"without": [], "with": []}
    for number in range(repeats + 5):
        frame = frame.clone()
        row = PATCH * (number % SIDE)
        frame[:, :, row : row + PATCH] = torch.randn(frame[:, :, :PATCH].shape, generator=generator)
        # Each of the two goes first in every other round.
        for name in sorted(towers, reverse=number % 2 == 0):
            times[name].append(seconds(partial(towers[name], frame)))
    return {name: taken[5:] for name, taken in times.items()}


def main() -> None:
    """Measure both policies in float32 and bfloat16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--first-repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    settings = SiglipVisionConfig(num_hidden_layers=arguments.layers, vision_use_head=False)
    tower = SiglipVisionModel(settings).eval()
    rows = []
    for policy in ("motion", "stc"):
        config = CacheConfig(policy=policy, refresh=0.0, redo_from=None, interval=10**6)
        frame = torch.randn(1, 3, SIDE * PATCH, SIDE * PATCH)
        first = first_frames(tower, config, frame, arguments.first_repeats)
        extra = [
            (checked - unchecked) / dense
            for checked, unchecked, dense in zip(
                first["with"], first["without"], first["dense"], strict=True
            )
        ]
        cached = cached_frames(copy.deepcopy(tower), config, arguments.repeats)
        ratio = compare(cached["with"], cached["without"])
        median = {name: sorted(taken)[len(taken) // 2] for name, taken in first.items()}
        later = {name: sorted(taken)[len(taken) // 2] for name, taken in cached.items()}
        row = {
            "policy": policy,
            "layers": arguments.layers,
            "tokens": SIDE * SIDE,
            "dense_ms": round(1e3 * median["dense"], 2),
            "first_unchecked_ms": round(1e3 * median["without"], 2),
            "first_checked_ms": round(1e3 * median["with"], 2),
            "extra_in_dense_frames": round(sorted(extra)[len(extra) // 2], 3),
            "cached_unchecked_ms": round(1e3 * later["without"], 3),
            "cached_checked_ms": round(1e3 * later["with"], 3),
            "ratio": round(ratio.median, 4),
            "ratio_p20": round(ratio.spread.p20, 4),
            "ratio_p80": round(ratio.spread.p80, 4),
        }
        print(row, flush=True)
        rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
