#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Time from a decoded picture to pixel values: dense, and where one tile in ten changed.

Against the image processor that needs no torchvision, and against what the one based on
torchvision calls: torch's antialiased resize of bytes, then a normalisation. Writes
results/frames_to_patches.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
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


def milliseconds(function: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Least and median."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(1000 * (time.perf_counter() - begin))
    return min(times), statistics.median(times)


def measure(size: tuple[int, int], side: int, patch: int, repeats: int) -> list[dict[str, object]]:
    """Time each way; all but torch's give the same bits, which is checked."""
    before = picture(*size)
    after = with_changes(before)
    processor = default_processor("siglip_vision_model", side)
    whole = patch_plan(size, (side, side), (side, side), mean=HALF, std=HALF)
    plan = patch_plan(size, (side, side), (patch, patch), mean=HALF, std=HALF)
    patches = frames_to_patches(before, *plan)

    def by_processor() -> Tensor:
        pixels: Tensor = processor(
            images=[after[0].numpy()], return_tensors="pt", input_data_format="channels_last"
        )["pixel_values"]
        return pixels

    def by_torch() -> Tensor:
        resized = F.interpolate(
            after.permute(0, 3, 1, 2), (side, side), mode="bicubic", antialias=True
        )
        return (resized.float() - 127.5) / 127.5

    pair = [before, after]

    def update() -> Tensor:
        """From the one to the other and back again, so that something changes in each call."""
        pair.reverse()
        return update_patches_(patches, pair[0], pair[1], *plan)

    dense = frames_to_patches(after, *whole).view(1, 3, side, side)
    assert torch.equal(dense, by_processor())
    assert (dense - by_torch()).abs().max() * 127.5 < 1.01
    update()
    changed = int(update().sum())
    update()
    assert torch.equal(patches, frames_to_patches(pair[0], *plan))
    ways: dict[str, Callable[[], object]] = {
        "image processor (Pillow)": by_processor,
        "torch, antialiased, and a normalisation": by_torch,
        "frames_to_patches, pixel values": lambda: frames_to_patches(after, *whole),
        "frames_to_patches, patches": lambda: frames_to_patches(after, *plan),
        f"update_patches_, {changed} of {patches.shape[1]} patches": update,
        "update_patches_, no patch": lambda: update_patches_(patches, pair[0], pair[0], *plan),
    }
    times = {name: milliseconds(way, repeats) for name, way in ways.items()}
    slowest, _ = times["image processor (Pillow)"]
    return [
        {
            "way": name,
            "least_ms": f"{least:.2f}",
            "median_ms": f"{median:.2f}",
            "times_as_fast": f"{slowest / least:.1f}",
        }
        for name, (least, median) in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs=2, type=int, default=(1080, 1920), help="of a picture")
    parser.add_argument("--side", type=int, default=384, help="of the model's input")
    parser.add_argument("--patch", type=int, default=14)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--note", default="", help="what to know about the machine")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = measure(tuple(options.size), options.side, options.patch, options.repeats)
    shared = {
        "picture": "x".join(map(str, options.size)),
        "side": options.side,
        "patch": options.patch,
        "threads": options.threads,
    }
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*shared, *rows[0], "note"])
        writer.writeheader()
        writer.writerows({**shared, **row, "note": options.note} for row in rows)
    for row in rows:
        print(f"{row['least_ms']:>8} ms {row['times_as_fast']:>6}x  {row['way']}")


if __name__ == "__main__":
    main()
