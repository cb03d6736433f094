#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time from a decoded picture to pixel values: dense, and where one tile in ten changed.

Against the fast image processor, which is based on torchvision and left out where that is missing,
against the one based on Pillow, and against torch's antialiased resize of bytes alone. The ways
take turns, so that other work on the machine slows all of them. Writes
results/frames_to_patches.csv.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from stc_kernels import frames_to_patches, patch_plan, update_patches_
from stc_video.models.preprocess import default_processor

RESULTS = Path(__file__).parent / "results" / "frames_to_patches.csv"
HALF = (0.5, 0.5, 0.5)
#: rows and columns of the tiles of which one in ten changes
TILES = (9, 16)


def picture(height: int, width: int) -> Tensor:
    """A smooth picture with some noise."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(
        torch.rand(1, 3, height // 32, width // 32, generator=generator), (height, width)
    )
    noise = 0.05 * torch.rand(1, 3, height, width, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).contiguous()


def with_changes(before: Tensor) -> Tensor:
    """The next picture: all of one tile in ten is different, side by side in a row of tiles."""
    after = before.clone()
    height, width = before.shape[1] // TILES[0], before.shape[2] // TILES[1]
    for number in range(TILES[0] * TILES[1] // 10):
        row, column = 3 + number // 7, 4 + number % 7
        after[:, row * height : (row + 1) * height, column * width : (column + 1) * width] ^= 8
    return after


def milliseconds(
    ways: dict[str, Callable[[], object]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Least and median of each."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(repeats):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            times[name].append(1000 * (time.perf_counter() - begin))
    return {name: (min(taken), statistics.median(taken)) for name, taken in times.items()}


def fast_processor(side: int) -> Any | None:
    """SigLIP's, None without torchvision."""
    if importlib.util.find_spec("torchvision") is None:
        print("torchvision is not installed: the fast image processor is left out")
        return None
    named_so = not hasattr(transformers, "SiglipImageProcessorPil")  # before 5
    kind = getattr(transformers, "SiglipImageProcessor" + "Fast" * named_so)
    return kind(size={"height": side, "width": side})


def measure(size: tuple[int, int], side: int, patch: int, repeats: int) -> list[dict[str, object]]:
    """Time each way; that the results are the processors' to the last bit is checked."""
    before = picture(*size)
    after = with_changes(before)
    whole = patch_plan(size, (side, side), (side, side), mean=HALF, std=HALF)
    like_fast = patch_plan(
        size, (side, side), (side, side), mean=HALF, std=HALF, rounding="torchvision"
    )
    plan = patch_plan(size, (side, side), (patch, patch), mean=HALF, std=HALF)
    patches = frames_to_patches(before, *plan)
    pair = [before, after]

    def update() -> Tensor:
        """From the one to the other and back again, so that something changes in each call."""
        pair.reverse()
        return update_patches_(patches, pair[0], pair[1], *plan)

    def by(processor: Any) -> Tensor:
        pixels: Tensor = processor(
            images=[after[0].numpy()], return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        return pixels

    def by_torch() -> Tensor:
        planes = after.permute(0, 3, 1, 2)
        return F.interpolate(planes, (side, side), mode="bicubic", antialias=True)

    slow, fast = default_processor("siglip_vision_model", side), fast_processor(side)
    assert torch.equal(frames_to_patches(after, *whole).view(1, 3, side, side), by(slow))
    if fast is not None:
        assert torch.equal(frames_to_patches(after, *like_fast).view(1, 3, side, side), by(fast))
    update()
    changed = int(update().sum())
    update()
    assert torch.equal(patches, frames_to_patches(pair[0], *plan))
    ways: dict[str, Callable[[], object]] = {
        "image processor (Pillow)": lambda: by(slow),
        "torch, antialiased, no normalisation": by_torch,
        "frames_to_patches, Pillow's pixel values": lambda: frames_to_patches(after, *whole),
        "frames_to_patches, the fast ones": lambda: frames_to_patches(after, *like_fast),
        "frames_to_patches, patches": lambda: frames_to_patches(after, *plan),
        f"update_patches_, {changed} of {patches.shape[1]} patches": update,
        "update_patches_, no patch": lambda: update_patches_(patches, pair[0], pair[0], *plan),
    }
    base = "image processor (Pillow)"
    if fast is not None:
        base = "fast image processor"
        ways = {base: lambda: by(fast), **ways}
    times = milliseconds(ways, repeats)
    return [
        {
            "way": name,
            "least_ms": f"{least:.2f}",
            "median_ms": f"{median:.2f}",
            "times_as_fast": f"{times[base][0] / least:.1f}",
            "than": base,
        }
        for name, (least, median) in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs=2, type=int, default=(1080, 1920), help="of a picture")
    parser.add_argument("--side", type=int, default=384, help="of the model's input")
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--note", default="", help="what to know about the machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        shared = {
            "picture": "x".join(map(str, options.size)),
            "side": options.side,
            "patch": options.patch,
            "threads": threads,
        }
        for row in measure(tuple(options.size), options.side, options.patch, options.repeats):
            rows.append({**shared, **row, "note": options.note})
            print(f"{row['least_ms']:>8} ms {row['times_as_fast']:>6}x {threads}  {row['way']}")
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
