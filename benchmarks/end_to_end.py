# SPDX-License-Identifier: Apache-2.0
"""How much shorter a clip takes to encode, everything the cacher does included, and how alike.

The tower is the trained DINOv2 ViT-S/14. After each frame the stock tower encodes the same one, so
that both meet the same state of the machine; the first frame, which is dense, counts.

    python benchmarks/end_to_end.py static_camera.mp4 --out benchmarks/results/end_to_end.csv
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch
from environment import environment, write_rows

from stc_video import CacheConfig
from stc_video.loading.vision import load_model
from stc_video.studies.fidelity.measure import encode_densely, measure
from stc_video.studies.pruning.clips import open_clips

SETTINGS = {
    "quality 0.983 (default)": CacheConfig(),
    "quality 0.99": CacheConfig(quality=0.99),
    "quality 0.99, refresh 1/8, propagate 1": CacheConfig(
        quality=0.99, refresh=1 / 8, propagate=1.0
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--fps", type=float, default=5.0)
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model()
    opened = open_clips([arguments.clip], fps=arguments.fps, max_frames=arguments.frames)
    [clip] = encode_densely({arguments.fps: opened}, model)
    rows: list[dict[str, object]] = []
    for name, config in SETTINGS.items():
        found = measure(clip, model, config, dense_every=1)
        row = {
            "setting": name,
            "fps": arguments.fps,
            "frames": clip.frames,
            "cost": round(found.cost, 4),
            "similarity": round(found.similarity, 5),
            "frame_ms": round(1e3 * statistics.median(found.seconds), 2),
            "dense_ms": round(1e3 * statistics.median(found.dense_seconds), 2),
            "times_shorter": round(sum(found.dense_seconds) / sum(found.seconds), 3),
        }
        print(row, flush=True)
        rows.append(row | {"model": model.name} | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
