# SPDX-License-Identifier: Apache-2.0
"""How similar cached features stay to dense ones on real clips, and at which share of the work.

Every frame is also encoded densely, by the same tower with the cacher paused. The error of a
frame is 1 - cosine, averaged over its tokens; first frames, which are dense, are left out of the
similarities and counted in the cost.

    python benchmarks/fidelity.py CLIP.mp4 ... --fps 2 5 --out benchmarks/results/fidelity.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from environment import environment, write_rows
from rich.console import Console
from rich.progress import track
from rich.table import Table

import stc_video
from stc_video import CacheConfig
from stc_video.models.load import LoadedModel, load_model
from stc_video.video import open_video

POLICIES = {
    "stc": CacheConfig("stc", interval=2, ratio=0.25),
    "stc-interval-4": CacheConfig("stc", interval=4, ratio=0.25),
    "motion": CacheConfig("motion"),
}


def encode_clip(
    model: LoadedModel, inputs: list[dict[str, torch.Tensor]], config: CacheConfig
) -> tuple[float, list[float]]:
    """Return the mean cost of a clip's frames and the similarity to dense of all but the first."""
    cacher = stc_video.attach_cacher(model.tower, config)
    similarities = []
    try:
        for arguments in inputs:
            cached = model.encode(arguments)
            with cacher.paused():
                dense = model.encode(arguments)
            cosines = torch.cosine_similarity(cached.float(), dense.float(), dim=-1)
            similarities.append(float(cosines.mean()))
        return cacher.stats().cost, similarities[1:]
    finally:
        cacher.detach()


def row(
    policy: str, fps: float, clip: str, frames: int, cost: float, similarities: list[float]
) -> dict[str, object]:
    """One line of the table; ``clip`` may stand for several."""
    return {
        "policy": policy,
        "fps": fps,
        "clip": clip,
        "frames": frames,
        "cost": round(cost, 4),
        "similarity": round(float(np.mean(similarities)), 5),
        "error": round(1 - float(np.mean(similarities)), 5),
        "similarity_p5": round(float(np.percentile(similarities, 5)), 5),
        "worst_frame": round(min(similarities), 5),
    }


def study(
    model: LoadedModel, clips: list[Path], fps: float, frames: int
) -> list[dict[str, object]]:
    """Measure every policy on every clip at one frame rate."""
    decoded = {}
    for clip in clips:
        with open_video(clip, fps=fps, max_frames=frames) as video:
            decoded[clip.stem] = [model.pixels([frame.image]) for frame in video]
    rows = []
    for policy, config in POLICIES.items():
        results = {}
        for name in track(decoded, f"{policy} at {fps:g} fps", transient=True):
            results[name] = encode_clip(model, decoded[name], config)
            cost, similarities = results[name]
            rows.append(row(policy, fps, name, len(decoded[name]), cost, similarities))
        rows.append(summary(policy, fps, results) | {"frames": sum(map(len, decoded.values()))})
    return rows


def summary(
    policy: str, fps: float, results: dict[str, tuple[float, list[float]]]
) -> dict[str, object]:
    """Means over the clips, each clip counting the same, and the worst clip's error."""
    means = [float(np.mean(similarities)) for _, similarities in results.values()]
    pooled = [value for _, similarities in results.values() for value in similarities]
    cost = float(np.mean([cost for cost, _ in results.values()]))
    line = row(policy, fps, "all", 0, cost, pooled)
    similarity = float(np.mean(means))
    return line | {
        "similarity": round(similarity, 5),
        "error": round(1 - similarity, 5),
        "worst_clip_error": round(1 - min(means), 5),
    }


def show(rows: list[dict[str, object]]) -> None:
    """Print the table."""
    columns = ["policy", "fps", "clip", "cost", "similarity", "error"]
    columns += ["similarity_p5", "worst_clip_error"]
    table = Table(*columns)
    for line in rows:
        values = [str(line.get(column, "")) for column in columns]
        table.add_row(*values, style="bold" if line["clip"] == "all" else None)
    Console().print(table)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--fps", nargs="+", type=float, default=[2.0, 5.0])
    parser.add_argument("--frames", type=int, default=40, help="at most, per clip")
    parser.add_argument("--model", help="Hugging Face id or folder; default: the trained DINOv2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model(arguments.model)
    rows: list[dict[str, object]] = []
    for fps in arguments.fps:
        rows += study(model, arguments.clips, fps, arguments.frames)
    show(rows)
    if arguments.out is not None:
        facts = {"model": model.description} | environment()
        write_rows(arguments.out, [{"worst_clip_error": ""} | line | facts for line in rows])


if __name__ == "__main__":
    main()
