# SPDX-License-Identifier: Apache-2.0
"""Three ways to make the frames cheaper that ``motion`` encodes densely, against the dense output.

    python benchmarks/dense_frames.py CLIP.mp4 ...
    python benchmarks/dense_frames.py CLIP.mp4 ... --policy as-is merged --frames 40

The frames are those that the policy encodes densely by its defaults, but for first frames, audits
and frames that are encoded twice. They are encoded again,

- reusing tokens of the frame before, in place, or shifted by whole patches ("reuse");
- with the last layers for those tokens only that a pruner is likely to keep ("stop");
- with similar tokens merged inside the tower and unmerged behind it ("merge"),

and, as a yardstick, from pictures moved by a pixel and by half a pixel ("moved"). "pan" is a made
pan over the first frame of each clip, by whole and by parts of patches. ``--policy`` runs
whole clips, with and without merging in dense frames. ``results/dense_frames.csv`` gets a row
for each variant, clip and frame rate, and one for all of them; errors are 1 - cosine, mean over the
tokens, after the last norm. One stream, DINOv2 (absolute positions, one class token), float32.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from dense_frame_variants import POLICIES, PRUNERS, RETENTION, Encoded, Made, pans, variants
from environment import environment, write_rows
from torch import Tensor
from torch.nn.functional import cosine_similarity

from stc_video import CacheConfig, make_pruner
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.studies.fidelity.measure import DenseClip, encode_densely, measure
from stc_video.studies.metrics import keep_mask
from stc_video.studies.pruning.clips import open_at_rates

RESULTS = Path(__file__).parent / "results" / "dense_frames.csv"
KINDS = ("moved", "reuse", "pan", "camera", "stop", "merge", "policy")


def kept(one: Encoded, made: Sequence[Made], pruner: str) -> list[float]:
    """For each frame the part of the tokens that the pruner keeps of the dense frames.

    They are still kept, or, where only some tokens went through all layers, are among these.
    """
    make = partial(make_pruner, pruner, retention_ratio=RETENTION)
    dense = torch.cat(one.clip.dense)[:, 1:]
    wanted = keep_mask(make()(dense).indices, dense.shape[1])[one.numbers]
    if made[0].rows is not None:
        masks = [torch.zeros(one.tokens, dtype=torch.bool).index_fill(0, of.rows, True)[1:]
                 for of in made if of.rows is not None]  # fmt: skip
        found = torch.stack(masks)
    else:
        others = dense.clone()
        others[one.numbers] = torch.cat([of.tokens for of in made])[:, 1:]
        found = keep_mask(make()(others).indices, dense.shape[1])[one.numbers]
    return ((wanted & found).sum(1) / wanted.sum(1)).tolist()


def error(tokens: Tensor, dense: Tensor) -> float:
    """1 - cosine, mean over the tokens."""
    return 1.0 - float(cosine_similarity(tokens, dense, dim=-1).mean())


def facts_of(one: Encoded, made: Sequence[Made], pruners: Sequence[str]) -> dict[str, list[float]]:
    """Cost, error, and kept tokens of each frame."""
    pairs = zip(made, (one.clip.dense[number] for number in one.numbers), strict=True)
    errors = [error(of.tokens, dense if of.rows is None else dense[:, of.rows])
              for of, dense in pairs]  # fmt: skip
    shares = {f"kept_{pruner}": kept(one, made, pruner) for pruner in pruners}
    return {"cost": [of.cost for of in made], "error": errors} | shares


def camera(one: Encoded) -> dict[str, int]:
    """Count dense frames that are the frame before, translated: by anything, and by whole patches.

    That is taken to be so where the best translation by whole pixels halves the mean difference.
    """
    patch = one.clip.inputs[0]["pixel_values"].shape[-1] // one.clip.grid[1]
    counts = {"all": 0, "translated": 0, "translated by whole patches, to a pixel": 0}
    for number in one.numbers:
        before, now = (one.clip.inputs[n]["pixel_values"].mean(1)[0] for n in (number - 1, number))
        product = torch.fft.rfft2(now) * torch.fft.rfft2(before).conj()
        peak = int(torch.fft.irfft2(product / product.abs().clamp(min=1e-9), s=now.shape).argmax())
        side = now.shape[-1]
        shift = [(at + side // 2) % side - side // 2 for at in divmod(peak, side)]
        back = now.roll([-by for by in shift], dims=(0, 1))
        inside = [slice(max(0, -by), side - max(0, by)) for by in shift]
        left = (back - before)[inside[0], inside[1]].abs().mean()
        is_moved = any(shift) and bool(left < (now - before).abs().mean() / 2)
        off = [abs(by - patch * round(by / patch)) for by in shift]
        counts["all"] += 1
        counts["translated"] += is_moved
        counts["translated by whole patches, to a pixel"] += is_moved and max(
            map(abs, shift)
        ) > 1 >= max(off)
    return counts


Facts = dict[tuple[str, str], dict[tuple[str, float], dict[str, list[float]]]]


def whole_clips(
    clips: Sequence[DenseClip], model: LoadedModel, names: Sequence[str], qualities: Sequence[float]
) -> Iterator[dict[str, Any]]:
    """Run clips by the policy as it is, and with tokens merged in dense frames."""
    facts: Facts = {}
    for clip in clips:
        for quality in qualities:
            for name in names:
                with mock.patch("stc_video.cacher.cacher.MotionPolicy", POLICIES[name]):
                    found = measure(clip, model, CacheConfig(quality=quality))
                title = f"{clip.fps:g} fps, quality {quality:g}, {name}"
                errors = [1.0 - similarity for similarity in found.similarities]
                of_clip = facts.setdefault(("policy", title), {})
                of_clip[clip.name, clip.fps] = {"cost": found.costs, "error": errors}
        print(clip.name, clip.fps, flush=True)
    yield from rows_of(facts)


def dense_frames(clips: Sequence[DenseClip], model: LoadedModel) -> Iterator[dict[str, Any]]:
    """Encode the dense frames of clips in every way."""
    facts: Facts = {}
    counts: dict[str, int] = {}
    for clip in clips:
        one, key = Encoded(clip, model), (clip.name, clip.fps)
        for name, count in camera(one).items():
            counts[name] = counts.get(name, 0) + count
        for name, made, dense in pans(clip, one) if clip.fps == clips[0].fps else ():
            found = {"cost": [made.cost], "error": [error(made.tokens, dense)]}
            facts.setdefault(("pan", name), {})[key] = found
        for variant, encode in variants().items() if one.numbers else ():
            pruners = [of for of in PRUNERS if variant[0] != "stop" or of == variant[1][:3]]
            facts.setdefault(variant, {})[key] = facts_of(one, encode(one), pruners)
        print(*key, len(one.numbers), "dense frames", flush=True)
    rows = list(rows_of(facts))
    yield from rows
    for name, count in counts.items():
        yield dict.fromkeys(rows[0], "") | {"kind": "camera", "variant": name, "frames": count}


def row_of(
    kind: str, name: str, clip: str, fps: Any, found: dict[str, list[float]]
) -> dict[str, Any]:
    """One row of the table."""
    shares = {f"kept_{pruner}": found.get(f"kept_{pruner}") for pruner in PRUNERS}
    return {
        "kind": kind,
        "variant": name,
        "clip": clip,
        "fps": fps,
        "frames": len(found["cost"]),
        "cost": round(float(np.mean(found["cost"])), 4),
        "error": round(float(np.mean(found["error"])), 5),
        "worst_frame": round(max(found["error"]), 5),
        "worst_clip": "",
    } | {of: "" if one is None else round(float(np.mean(one)), 4) for of, one in shares.items()}


def rows_of(facts: Facts) -> Iterator[dict[str, Any]]:
    """Rows of each variant: over all frames, or all clips under the policy, then clip by clip."""
    for (kind, name), by_clip in facts.items():
        parts = [row_of(kind, name, *key, found) for key, found in by_clip.items()]
        whole: dict[str, list[float]] = {}
        for found in by_clip.values():
            for column, values in found.items():
                mean = [float(np.mean(values))] if kind == "policy" else values
                whole[column] = whole.get(column, []) + mean
        yield row_of(kind, name, "all", "", whole) | {
            "frames": sum(part["frames"] for part in parts),
            "worst_frame": max(part["worst_frame"] for part in parts),
            "worst_clip": max(part["error"] for part in parts),
        }
        yield from parts


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the table; rows of variants that were not measured this time stay."""
    before: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            before = list(csv.DictReader(file))
    measured = {(row["kind"], row["variant"]) for row in rows}
    kept = [row for row in before if (row["kind"], row["variant"]) not in measured]
    write_rows(path, sorted([*kept, *rows], key=lambda row: KINDS.index(row["kind"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--policy", nargs="+", choices=POLICIES, help="whole clips, not frames")
    parser.add_argument("--quality", nargs="+", type=float, default=[0.975, 0.983, 0.99])
    parser.add_argument("--fps", nargs="+", type=float, default=[2.0, 5.0])
    parser.add_argument("--frames", type=int, default=8, help="at most, per clip")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of promises, which are not what this is about
    model = load_model(device="cpu")
    with ExitStack() as files, torch.inference_mode():
        opened = open_at_rates(
            arguments.clips, arguments.fps, max_frames=arguments.frames, files=files
        )
        clips = encode_densely(opened, model)
        made = (
            whole_clips(clips, model, arguments.policy, arguments.quality)
            if arguments.policy
            else dense_frames(clips, model)
        )
        rows = list(made)
    for row in rows:
        if row["clip"] in ("all", ""):
            print(*row.values(), sep="\t")
    write(arguments.out, [row | environment() for row in rows])


if __name__ == "__main__":
    main()
