# SPDX-License-Identifier: Apache-2.0
"""Time of a cached temporal patch of Qwen2-VL's tower as a fraction of a dense one, on a CPU.

The tower has the geometry of Qwen2-VL's (32 blocks, 1280 wide) and random weights; the clip is
real. Dense is the unpatched Hugging Face tower with scaled-dot-product attention. The two alternate
in one process, so that the fraction holds when the machine's speed drifts. Only what changed is
encoded (no refresh, no dense tail), in steps of 1/64 of the rows. The last line is all cached
patches together; it should be at most 1.2 times the fraction of rows that changed, plus 0.05.

    python benchmarks/qwen_tower.py CLIP.mp4 --out benchmarks/results/qwen_tower.csv
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from environment import environment, write_rows
from PIL import Image
from rich.progress import track
from torch import Tensor, nn
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl

import stc_video
from stc_video import CacheConfig
from stc_video.models.qwen_frames import TemporalPatches
from stc_video.video import open_video

STEP = 1 / 64


def make_tower(layers: int, width: int) -> nn.Module:
    """Qwen2-VL's tower with random weights: head size 80, MLP four times as wide."""
    torch.manual_seed(0)
    config = configuration_qwen2_vl.Qwen2VLVisionConfig(
        depth=layers, embed_dim=width, num_heads=width // 80, hidden_size=1536
    )
    config._attn_implementation = "sdpa"
    return modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel._from_config(config).eval()


def temporal_patches(clip: Path, tower: nn.Module, arguments: argparse.Namespace) -> list[Tensor]:
    """The clip's first temporal patches, each (1, h, w, P)."""
    height, width = arguments.grid
    size = (14 * width, 14 * height)
    pixels = size[0] * size[1]
    make = TemporalPatches(tower, min_pixels=pixels, max_pixels=pixels)

    def pictures() -> Iterator[np.ndarray]:
        with open_video(clip, fps=arguments.fps) as video:
            for frame in islice(video, 2 * arguments.patches):
                image = Image.fromarray(frame.image).resize(size, Image.Resampling.BICUBIC)
                yield np.asarray(image)

    frames = make(list(pictures()))
    if tuple(frames.shape[1:3]) != (height, width):
        raise SystemExit(f"the processor made a grid of {tuple(frames.shape[1:3])}")
    return list(frames.split(1))


def measure(tower: nn.Module, frames: list[Tensor], threshold: float) -> list[dict[str, Any]]:
    """One row per temporal patch."""
    settings = {"refresh": 0.0, "tail_layers": 0, "threshold": threshold}
    steps = tuple(STEP * number for number in range(1, int(1 / STEP)))
    cacher = stc_video.attach_cacher(tower, CacheConfig(buckets=steps, **settings))
    rows: list[dict[str, Any]] = []

    def seconds(frame: Tensor) -> float:
        grid = torch.tensor([frame.shape[:3]])
        start = time.perf_counter()
        tower(frame.flatten(0, 2), grid_thw=grid)
        return time.perf_counter() - start

    with torch.inference_mode():
        with cacher.paused():
            seconds(frames[0])  # warms up
        for number, frame in enumerate(track(frames, description="temporal patches")):
            with cacher.paused():
                dense = seconds(frame)
            cached = seconds(frame)
            record = cacher.last_frames[0]
            rows.append(
                {
                    "patch": number,
                    "kind": record.kind,
                    "rows": record.tokens,
                    "changed": record.changed,
                    "encoded": int(record.encoded.count_nonzero()),
                    "dense_ms": round(1e3 * dense, 2),
                    "cached_ms": round(1e3 * cached, 2),
                    **fractions(cached / dense, record.changed / record.tokens),
                }
            )
    cached_rows = [row for row in rows if row["kind"] != "dense"]
    if not cached_rows:
        raise SystemExit("no temporal patch was cached: the camera moves, or raise --threshold")
    sums = {
        name: sum(row[name] for row in cached_rows)
        for name in ("rows", "changed", "encoded", "dense_ms", "cached_ms")
    }
    total = fractions(sums["cached_ms"] / sums["dense_ms"], sums["changed"] / sums["rows"])
    rows.append({"patch": "cached together", "kind": len(cached_rows), **sums, **total})
    return rows


def fractions(time_fraction: float, changed: float) -> dict[str, object]:
    """The fraction of a dense patch's time, and what it should be at most."""
    limit = 1.2 * changed + 0.05
    return {
        "changed_fraction": round(changed, 4),
        "time_fraction": round(time_fraction, 4),
        "limit": round(limit, 4),
        "holds": time_fraction <= limit,
    }


def main() -> None:
    """Measure one clip."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--fps", type=float, default=4.0, help="two pictures are one patch")
    parser.add_argument("--patches", type=int, default=12)
    parser.add_argument("--grid", type=int, nargs=2, default=(20, 20), metavar=("H", "W"))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--threshold", type=float, default=0.92)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tower = make_tower(arguments.layers, arguments.width)
    frames = temporal_patches(arguments.clip, tower, arguments)
    geometry = {
        "layers": arguments.layers,
        "width": arguments.width,
        "grid": "x".join(map(str, arguments.grid)),
        "clip": arguments.clip.name,
        "threshold": arguments.threshold,
        "transformers": transformers.__version__,
    }
    rows = measure(tower, frames, arguments.threshold)
    for row in rows:
        print(row)
    if arguments.out is not None:
        write_rows(arguments.out, [geometry | row | environment() for row in rows])


if __name__ == "__main__":
    main()
