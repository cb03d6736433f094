# SPDX-License-Identifier: Apache-2.0
"""What each part of the ``motion`` policy is worth: one changed at a time, against the defaults.

Some changes are settings, others replace a part of the policy (``selection_variants.py``).

    python benchmarks/motion_knobs.py CLIP.mp4 ... --out benchmarks/results/motion_knobs.csv

A change moves cost and error together. ``error_ratio`` is the error over that of the defaults at
the same cost: below 1 the change pays, above 1 it does not. Between their thresholds, those of them
that none of the others beats, it is on a straight line in cost and the error's logarithm; empty
where the defaults have no such cost.

    python benchmarks/motion_knobs.py CLIP.mp4 ... --each --thresholds 0.4 0.6 0.75 0.85 0.9 0.95

``--each`` gives every clip rows of its own instead of their mean. They show what ``quality`` could
save at most: the cheapest setting that is good enough for a clip, known beforehand. ``--still``
has settings for cameras that stand still, where context grows stale and little else.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from environment import environment, merge_rows
from rich.progress import track
from selection_variants import (
    ByLastFrame,
    ByPatchEmbedding,
    ByPixels,
    PerTokenThresholds,
    SelectedTwice,
    WithNeighbours,
    in_use,
)

from stc_video import CacheConfig
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.studies.fidelity.measure import DenseClip, encode_densely, measure
from stc_video.studies.metrics import pareto_front
from stc_video.studies.pruning.clips import open_at_rates

DEFAULTS = "the defaults"
THRESHOLDS = (0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
COMPARED = (0.8, 0.9, 0.95)
#: where what is compared is more alike, or less
OWN_THRESHOLDS = {
    "by patch embedding": (0.85, 0.9, 0.95, 0.98),
    "by pixels": (0.9, 0.95, 0.98, 0.99, 0.995),
    "with neighbours": (0.3, 0.5, 0.7, 0.8, 0.9),
}
SETTINGS: dict[str, dict[str, object]] = {
    "no refresh": {"refresh": 0.0},
    "refresh 1/8": {"refresh": 1 / 8},
    "refresh 1/4": {"refresh": 1 / 4},
    "refresh by age alone": {"age_rate": 1e3},
    "refresh by change alone": {"age_rate": 0.0},
    "moves not passed on": {"propagate": 0.0},
    "moves passed on in full": {"propagate": 1.0},
    "no frame encoded again": {"redo_from": None},
    "no tail": {"tail_layers": 0},
    "tail of 1 layer": {"tail_layers": 1},
    "tail of 6 layers": {"tail_layers": 6},
    "tail in every frame": {"tail_from": 0.0},
    "coarse buckets": {"buckets": (1 / 8, 1 / 4, 1 / 2)},
    "fine buckets": {"buckets": tuple(n / 16 for n in range(1, 9))},
    "buckets to 3/4": {"buckets": (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)},
    "selected twice": {"tail_layers": 6, "tail_from": 1.0},
}
_FINEST: dict[str, object] = {"buckets": tuple(n / 32 for n in range(1, 17))}
STILL: dict[str, dict[str, object]] = {
    "finest buckets": _FINEST,
    "finest, no refresh": _FINEST | {"refresh": 0.0},
    "finest, refresh 1/32": _FINEST | {"refresh": 1 / 32},
    "finest, refresh 1/8": _FINEST | {"refresh": 1 / 8},
    "finest, refresh 1/4": _FINEST | {"refresh": 1 / 4},
    "finest, tail in every frame": _FINEST | {"tail_from": 0.0},
    "finest, refresh 1/32, tail in every frame": _FINEST | {"refresh": 1 / 32, "tail_from": 0.0},
}
VARIANTS: dict[str, type[MotionPolicy]] = {
    "by patch embedding": ByPatchEmbedding,
    "by pixels": ByPixels,
    "against the last frame": ByLastFrame,
    "with neighbours": WithNeighbours,
    "a threshold per token": PerTokenThresholds,
    "selected twice": SelectedTwice,
}


def try_setting(
    clips: Sequence[DenseClip], model: LoadedModel, name: str, threshold: float
) -> dict[str, object]:
    """Mean cost and error over some clips, each counting the same, and the worst one's."""
    config = replace(CacheConfig(threshold=threshold), **(SETTINGS | STILL).get(name, {}))
    with in_use(VARIANTS.get(name, MotionPolicy), model.tower):
        found = [measure(clip, model, config) for clip in clips]
    errors = [1.0 - one.similarity for one in found]
    return {
        "change": name,
        "threshold": threshold,
        "fps": clips[0].fps,
        "clips": len(clips),
        "frames": sum(clip.frames for clip in clips),
        "cost": round(float(np.mean([one.cost for one in found])), 5),
        "error": round(float(np.mean(errors)), 6),
        "worst_clip_error": round(max(errors), 6),
        "worst_frame": round(min(min(one.similarities) for one in found), 5),
    }


def with_ratio(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """Add ``error_ratio`` to the rows of one frame rate."""
    base = [row for row in rows if row["change"] == DEFAULTS]
    points = np.array([[row["cost"], row["error"]] for row in base], dtype=float)
    best = pareto_front(points[:, 0].tolist(), (-points[:, 1]).tolist())
    costs, errors = points[best].T

    def ratio(row: dict[str, object]) -> float | str:
        cost, error = float(str(row["cost"])), float(str(row["error"]))
        if not costs[0] <= cost <= costs[-1]:
            return ""
        return round(error / float(np.exp(np.interp(cost, costs, np.log(errors)))), 4)

    return [row | {"error_ratio": ratio(row)} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--fps", nargs="+", type=float, default=[2.0, 5.0])
    parser.add_argument("--frames", type=int, default=40, help="at most, per clip")
    parser.add_argument("--changes", nargs="*", help="only these, next to the defaults")
    parser.add_argument("--thresholds", nargs="+", type=float, default=THRESHOLDS)
    parser.add_argument("--each", action="store_true", help="rows of each clip, not their mean")
    parser.add_argument("--still", action="store_true", help="settings for a still camera instead")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = load_model()
    with ExitStack() as files:
        opened = open_at_rates(
            arguments.clips, arguments.fps, max_frames=arguments.frames, files=files
        )
        clips = [clip for clip in encode_densely(opened, model) if clip.frames > 1]
    settings = [(DEFAULTS, threshold) for threshold in arguments.thresholds]
    changes = [*STILL] if arguments.still else [*SETTINGS, *VARIANTS]
    if arguments.changes is not None:
        changes = arguments.changes
    settings += [(name, t) for name in changes for t in OWN_THRESHOLDS.get(name, COMPARED)]
    rows: list[dict[str, object]] = []
    for fps in arguments.fps:
        own = [clip for clip in clips if clip.fps == fps]
        for group in [[clip] for clip in own] if arguments.each else [own]:
            named = {"clip": group[0].name} if arguments.each else {}
            found = [
                named | try_setting(group, model, name, threshold)
                for name, threshold in track(settings, f"{fps:g} fps", transient=True)
            ]
            # Of a clip that is always dense there is no error to compare with.
            rows += found if arguments.each else with_ratio(found)
    for row in rows:
        print(*row.values(), sep="\t")
    if arguments.out is not None:
        facts = {"model": model.name} | environment()
        merge_rows(arguments.out, [row | facts for row in rows], by="fps")


if __name__ == "__main__":
    main()
