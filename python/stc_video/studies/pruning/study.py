# SPDX-License-Identifier: Apache-2.0
"""Every pruning method at matched numbers of tokens, on the features of real clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stc_video.clock import Clock
from stc_video.studies.metrics import explained, keep_mask, overlap, share
from stc_video.studies.pruning.clips import EncodedClip
from stc_video.studies.pruning.methods import EVERYTHING, Method, ideal_mask

#: Name of the mean over the clips.
ALL = "all"
#: What a larger value of means a better choice, with what it says.
MEASURES: dict[str, str] = {
    "explained_mean": "explained, mean",
    "explained_p5": "explained, 5th percentile",
    "kept_on_moved": "kept that moved",
    "moved_kept": "moved that are kept",
    "kept_on_salient": "kept that are salient",
    "salient_kept": "salient that are kept",
    "overlap_ideal": "overlap with the ideal",
}


@dataclass(frozen=True)
class Row:
    """One method at one budget on one clip, or on all.

    Attributes
    ----------
    method, budget, clip
        Of what; the budget in percent, the clip "all" for the mean over the clips, each of which
        counts the same (only the latencies are those of all frames together).
    causal, exact
        Whether the method looks at no later frame, and keeps the same known number of each.
    frames, tokens
        Frames of the clip, and tokens of a frame.
    kept, kept_min, kept_max
        Tokens kept per frame: mean, smallest, largest.
    latency_median, latency_p99
        Milliseconds per frame, fed one by one; of a method that needs the whole clip, the time of
        the clip divided by its frames.
    explained_mean, explained_p5
        Of each dropped token the largest cosine to one kept in its frame or before: mean and 5th
        percentile.
    kept_on_moved, moved_kept
        Share of the kept tokens that moved, and of the moved ones that are kept; without first
        frames, before which there is nothing to move from.
    kept_on_salient, salient_kept
        The same of the tokens that the saliency head marks.
    overlap_ideal
        Common tokens with the method's ideal over the mean of both numbers.
    """

    method: str
    budget: float
    clip: str
    causal: bool
    exact: bool
    frames: int
    tokens: int
    kept: float
    kept_min: int
    kept_max: int
    latency_median: float
    latency_p99: float
    explained_mean: float
    explained_p5: float
    kept_on_moved: float
    moved_kept: float
    kept_on_salient: float
    salient_kept: float
    overlap_ideal: float

    def measure(self, name: str) -> float:
        """Return one of `MEASURES`."""
        value: float = getattr(self, name)
        return value


@dataclass(frozen=True, eq=False)
class Selection:
    """The tokens that a method kept of a clip.

    Attributes
    ----------
    keep
        (F, N) bool.
    kept
        Per frame (K, D), as the language model gets them.
    seconds
        How long frames took, several times each.
    """

    keep: Tensor
    kept: list[Tensor]
    seconds: list[float]


@dataclass(frozen=True, eq=False)
class PruneStudy:
    """The whole comparison.

    Attributes
    ----------
    clips, methods, budgets
        What was compared; budgets in percent, largest first.
    rows
        One per method, budget and clip, those of `ALL` among them, and those of keeping
        everything at budget 100.
    keeps
        (method, budget, clip) -> (F, N) bool on the CPU.
    notes
        What a reader must know besides.
    """

    clips: tuple[EncodedClip, ...]
    methods: tuple[Method, ...]
    budgets: tuple[float, ...]
    rows: tuple[Row, ...]
    keeps: dict[tuple[str, float, str], Tensor]
    notes: tuple[str, ...] = ()

    def at(self, budget: float, clip: str = ALL) -> list[Row]:
        """Return the rows of a budget, in the order of the methods."""
        return [row for row in self.rows if row.budget == budget and row.clip == clip]

    @property
    def problems(self) -> tuple[str, ...]:
        """Clips that ended early, with the reason."""
        return tuple(f"{c.name} ended early: {c.problem}" for c in self.clips if c.problem)

    @property
    def frame_counts(self) -> dict[str, tuple[int, ...]]:
        """Clip -> number of frames at each rate."""
        return {clip.name: (clip.frames,) for clip in self.clips}

    @property
    def model_facts(self) -> tuple[tuple[str, str], ...]:
        """Grid and width of the tokens that are pruned."""
        grids = sorted({clip.grid for clip in self.clips})
        return (
            ("tokens of a frame", ", ".join(f"{h} x {w}" for h, w in grids)),
            ("width of a token", str(self.clips[0].features.shape[2])),
        )

    def table(self) -> list[dict[str, object]]:
        """Return the rows with the units in the names of their columns."""
        units = {
            "budget": "budget_percent",
            "tokens": "tokens_per_frame",
            "kept": "kept_per_frame",
            "latency_median": "latency_median_ms",
            "latency_p99": "latency_p99_ms",
        }
        return [{units.get(k, k): v for k, v in asdict(row).items()} for row in self.rows]


def run_study(
    clips: Sequence[EncodedClip],
    methods: Sequence[Method],
    budgets: Iterable[float],
    *,
    repeats: int = 1,
    on_step: Callable[[], None] = lambda: None,
) -> PruneStudy:
    """Measure every method at every budget on every clip.

    Parameters
    ----------
    clips
        At least one.
    methods
        Those that lack something on a clip are left out of the study, with a note.
    budgets
        Percent of a frame's tokens, above 0 and at most 100.
    repeats
        How often each frame is pruned for its latency.
    on_step
        Is called after each method, budget and clip: `steps` times.

    Returns
    -------
    PruneStudy
        With rows by budget and, within it, by method.

    Raises
    ------
    ValueError
        If no method is left.
    """
    able = [method for method in methods if all(method.fits(clip) for clip in clips)]
    if not able:
        names = ", ".join(method.name for method in methods)
        raise ValueError(f"no method is left: {names} needs attention over the pruned tokens")
    notes = [
        f"{method.name} is left out: it needs the attention over the pruned tokens, which is not "
        "known of this model"
        for method in methods
        if method not in able
    ]
    budgets = sorted(set(budgets), reverse=True)
    rows: list[Row] = []
    keeps: dict[tuple[str, float, str], Tensor] = {}
    with torch.inference_mode():
        for budget, method in [(100.0, EVERYTHING), *((b, m) for b in budgets for m in able)]:
            measured = []
            for clip in clips:
                selection = select(method, budget / 100, clip, repeats)
                measured.append((_row(method, budget, clip, selection), selection))
                keeps[method.name, budget, clip.name] = selection.keep.cpu()
                on_step()
            rows += [_mean(measured), *(row for row, _ in measured)]
    study = PruneStudy(tuple(clips), tuple(able), tuple(budgets), tuple(rows), keeps)
    return replace(study, notes=(*notes, *study.problems))


def steps(clips: int, methods: int, budgets: int) -> int:
    """Return the number of calls of `on_step` by `run_study` if no method is left out."""
    return clips * (1 + methods * budgets)


def select(method: Method, retention: float, clip: EncodedClip, repeats: int = 1) -> Selection:
    """Let a method prune a clip, frame by frame as they would come, unless it needs them all.

    Parameters
    ----------
    method
        What prunes.
    retention
        Fraction of a frame's tokens to keep.
    clip
        What is pruned.
    repeats
        How often; what is kept is that of the first time.

    Returns
    -------
    Selection
        Its `seconds` are after a pass over two frames that is not counted.
    """
    size = clip.frames if method.whole_clip else 1
    parts = [slice(start, start + size) for start in range(0, clip.frames, size)]
    _passed(method, retention, clip, parts[:2])
    keep, kept, seconds = _passed(method, retention, clip, parts)
    for _ in range(repeats - 1):
        seconds += _passed(method, retention, clip, parts)[2]
    return Selection(keep, kept, [second / size for second in seconds])


def _passed(
    method: Method, retention: float, clip: EncodedClip, parts: list[slice]
) -> tuple[Tensor, list[Tensor], list[float]]:
    """Give a new pruner some parts of a clip: what it kept, and the seconds of each part."""
    pruner = method.make(retention)
    clock = Clock(clip.features.device)
    masks: list[Tensor] = []
    kept: list[Tensor] = []
    seconds: list[float] = []
    for part in parts:
        attention = clip.attention_of(part)
        clock.lap()
        pruned = pruner(
            clip.features[part], clip.grid, pixels=clip.pixels[part], attention=attention
        )
        seconds.append(clock.lap())
        masks.append(keep_mask(pruned.indices, clip.tokens))
        counts = pruned.counts.tolist()
        kept += [
            tokens[:count].clone() for tokens, count in zip(pruned.tokens, counts, strict=True)
        ]
    return torch.cat(masks), kept, seconds


def _row(method: Method, budget: float, clip: EncodedClip, selection: Selection) -> Row:
    pruner = method.make(budget / 100)
    keep = selection.keep
    counts = keep.sum(1)
    cosines = explained(clip.features, keep, selection.kept)
    dropped = cosines[~keep].cpu().numpy()
    ideal = keep if method is EVERYTHING else ideal_mask(method, clip, budget / 100, keep)
    later = slice(1, None)
    milliseconds = 1e3 * np.array(selection.seconds)
    nothing = float("nan")
    return Row(
        method=method.name,
        budget=budget,
        clip=clip.name,
        causal=pruner.causal,
        exact=pruner.exact,
        frames=clip.frames,
        tokens=clip.tokens,
        kept=float(counts.float().mean()),
        kept_min=int(counts.min()),
        kept_max=int(counts.max()),
        latency_median=float(np.median(milliseconds)),
        latency_p99=float(np.percentile(milliseconds, 99)),
        explained_mean=float(dropped.mean()) if len(dropped) else nothing,
        explained_p5=float(np.percentile(dropped, 5)) if len(dropped) else nothing,
        kept_on_moved=share(keep[later], clip.moved[later]),
        moved_kept=share(clip.moved[later], keep[later]),
        kept_on_salient=share(keep, clip.salient),
        salient_kept=share(clip.salient, keep),
        overlap_ideal=nothing if ideal is None else overlap(keep, ideal),
    )


def _mean(measured: Sequence[tuple[Row, Selection]]) -> Row:
    """Put the clips of one method and budget together."""
    rows = [row for row, _ in measured]
    milliseconds = 1e3 * np.concatenate([selection.seconds for _, selection in measured])

    def mean(name: str) -> float:
        values = [value for row in rows if not np.isnan(value := getattr(row, name))]
        return float(np.mean(values)) if values else float("nan")

    means: dict[str, Any] = {name: mean(name) for name in ("kept", *MEASURES)}
    return replace(
        rows[0],
        clip=ALL,
        frames=sum(row.frames for row in rows),
        tokens=max(row.tokens for row in rows),
        kept_min=min(row.kept_min for row in rows),
        kept_max=max(row.kept_max for row in rows),
        latency_median=float(np.median(milliseconds)),
        latency_p99=float(np.percentile(milliseconds, 99)),
        **means,
    )
