# SPDX-License-Identifier: Apache-2.0
"""How similar cached features stay to dense ones on real clips, and at which share of the work.

The error of a frame is 1 - cosine to a dense encode, averaged over its tokens; first frames, which
are dense, are left out of the similarities and counted in the cost.

    python benchmarks/fidelity.py CLIP.mp4 ... --fps 2 5 --out benchmarks/results/fidelity.csv
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from environment import environment, write_rows
from rich.console import Console
from rich.progress import track
from rich.table import Table

from stc_video import CacheConfig
from stc_video.models.load import LoadedModel, load_model
from stc_video.studies.fidelity import Fidelity, encode_densely, measure

POLICIES = {
    "stc": CacheConfig("stc", interval=2, ratio=0.25),
    "stc-interval-4": CacheConfig("stc", interval=4, ratio=0.25),
    "motion": CacheConfig("motion"),
    "motion-0.99": CacheConfig("motion", quality=0.99),
}


def row(
    policy: str, fps: float, clip: str, frames: int, cost: float, similarities: Sequence[float]
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
    encoded = encode_densely(clips, model, fps=fps, max_frames=frames)
    rows = []
    for policy, config in POLICIES.items():
        results = {}
        for clip in track(encoded, f"{policy} at {fps:g} fps", transient=True):
            results[clip.name] = found = measure(clip, model, config)
            rows.append(
                row(policy, fps, clip.name, len(clip.inputs), found.cost, found.similarities)
            )
        total = sum(len(clip.inputs) for clip in encoded)
        rows.append(summary(policy, fps, results) | {"frames": total})
    return rows


def summary(policy: str, fps: float, results: dict[str, Fidelity]) -> dict[str, object]:
    """Means over the clips, each clip counting the same, and the worst clip's error."""
    means = [found.similarity for found in results.values()]
    pooled = [value for found in results.values() for value in found.similarities]
    cost = float(np.mean([found.cost for found in results.values()]))
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
