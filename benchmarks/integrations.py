# SPDX-License-Identifier: Apache-2.0
"""Tokens and work of the tower in other projects' own code, on a real clip.

Runs every project whose files are at hand (``STC_UPSTREAM_<NAME>`` names a folder) with random
weights: small towers at the real number of tokens. What a trained tower would see changes the work
of the tower somewhat; the numbers of tokens do not depend on the weights.

    python benchmarks/integrations.py CLIP.mp4 --fps 2 --frames 16
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import transformers
import upstream_models
from environment import environment, write_rows
from rich.console import Console
from rich.table import Table
from torch import Tensor
from upstream import NotAtHandError

from stc_video.integrations import dispider, llava_next, rekv, streamforest
from stc_video.video import open_video

CLIP = upstream_models.FRAMES_PER_CLIP
Run = Callable[[Any, Tensor], object]

PROJECTS: dict[str, tuple[Callable[[], AbstractContextManager[Any]], Any, Run, int]] = {
    "ReKV": (
        lambda: upstream_models.rekv(384, frames_in_window=16),
        rekv.apply,
        lambda model, frames: upstream_models.run_rekv(
            model, ((frames + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1), chunk=16
        ),
        384,
    ),
    "StreamForest": (
        upstream_models.streamforest,
        streamforest.apply,
        upstream_models.run_llava,
        384,
    ),
    "Dispider": (
        lambda: upstream_models.dispider(336),
        dispider.apply,
        lambda model, frames: upstream_models.run_dispider(
            model, frames[: len(frames) // CLIP * CLIP]
        ),
        336,
    ),
    "LLaVA-NeXT": (upstream_models.llava_next, llava_next.apply, upstream_models.run_llava, 384),
}


def frames_of(clip: Path, fps: float, count: int, size: int) -> Tensor:
    """Frames (F, 3, size, size) in [-1, 1]."""
    with open_video(clip, fps=fps) as video:
        pictures = [frame.image for frame in itertools.islice(video, count)]
    pixels = torch.stack([torch.tensor(picture) for picture in pictures]).permute(0, 3, 1, 2)
    scaled = torch.nn.functional.interpolate(
        pixels.float(), (size, size), mode="bilinear", antialias=True
    )
    return scaled / 127.5 - 1.0


def measure(name: str, clip: Path, fps: float, count: int) -> dict[str, object]:
    """One line of the table."""
    make, apply, run, size = PROJECTS[name]
    with make() as model, torch.no_grad():
        frames = frames_of(clip, fps, count, size)
        with apply(model) as handle:
            run(model, frames)
            stats = handle.stats()
    return {
        "project": name,
        "clip": clip.name,
        "fps": fps,
        "frames": stats.cache.frames,
        "tokens_before": stats.tokens_before,
        "tokens_after": stats.tokens_after,
        "tower_work": f"{stats.cache.cost:.3f}",
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    console, table, rows = Console(), Table("project", "clip", "tokens", "work of the tower"), []
    for name, clip in itertools.product(PROJECTS, settings.clips):
        try:
            made = measure(name, clip, settings.fps, settings.frames)
        except NotAtHandError as reason:
            console.print(f"{name}: skipped, {reason}")
            continue
        rows.append(made | environment())
        tokens = f"{made['tokens_before']} to {made['tokens_after']}"
        table.add_row(name, clip.name, tokens, str(made["tower_work"]))
    console.print(table)
    if settings.out and rows:
        write_rows(settings.out, rows)


if __name__ == "__main__":
    main()
