# SPDX-License-Identifier: Apache-2.0
"""Totals of a run against encoding every frame densely, and the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stc_video.report.record import STAGES, FrameRecord, RunRecord


@dataclass(frozen=True)
class Totals:
    """Totals of a run.

    Attributes
    ----------
    frames, dense, cached, unchanged
        Number of frames, and how many of each kind.
    cost
        Mean fraction of a dense frame's operations in the tower's layers.
    tokens_encoded, tokens_dense
        Patch tokens encoded (a token encoded in half of the layers counts half), and how many a
        dense encode of every frame takes.
    similarity, similarity_worst_frame
        Mean and smallest of the measured frames' similarities to a dense encode, or None.
    measured
        Frames on which that was measured.
    tokens_kept, tokens_kept_per_frame, tokens_before
        Tokens after pruning in all and on average per frame, and in all before it.
    reduction
        tokens_before / tokens_kept.
    seconds
        Per stage, over the run.
    tower_seconds_per_frame
        Median time of the tower per frame.
    dense_seconds_per_frame
        Median time of the dense reference per frame, or None if there was none.
    time_ratio
        Time of the tower over that of dense references for all frames; None if there was none.
    frames_per_second
        Frames over the time of all stages (the reference and the report not counted).
    """

    frames: int
    dense: int
    cached: int
    unchanged: int
    cost: float
    tokens_encoded: float
    tokens_dense: int
    similarity: float | None
    similarity_worst_frame: float | None
    measured: int
    tokens_kept: int
    tokens_kept_per_frame: float
    tokens_before: int
    reduction: float
    seconds: dict[str, float]
    tower_seconds_per_frame: float | None
    dense_seconds_per_frame: float | None
    time_ratio: float | None
    frames_per_second: float


def summarise(record: RunRecord) -> Totals:
    """Add up a run of any number of frames, none included."""
    frames, count = record.frames, len(record.frames)
    similar = [f.similarity for f in frames if f.similarity is not None]
    features = record.model.features
    kept = sum(features if f.kept is None else len(f.kept) for f in frames)
    seconds = {stage: sum(f.seconds.get(stage, 0.0) for f in frames) for stage in STAGES}
    spent = sum(seconds.values())
    dense_seconds = _median([f.dense_seconds for f in frames if f.dense_seconds])
    return Totals(
        frames=count,
        dense=_count(frames, "dense"),
        cached=_count(frames, "cached"),
        unchanged=_count(frames, "unchanged"),
        cost=sum(f.cost for f in frames) / count if count else 1.0,
        tokens_encoded=round(sum(sum(f.encoded) for f in frames), 3),
        tokens_dense=record.model.tokens * count,
        similarity=sum(similar) / len(similar) if similar else None,
        similarity_worst_frame=min(similar) if similar else None,
        measured=len(similar),
        tokens_kept=kept,
        tokens_kept_per_frame=kept / count if count else 0.0,
        tokens_before=features * count,
        reduction=features * count / kept if kept else 1.0,
        seconds=seconds,
        tower_seconds_per_frame=_median([f.seconds.get("tower", 0.0) for f in frames]),
        dense_seconds_per_frame=dense_seconds,
        time_ratio=seconds["tower"] / (dense_seconds * count) if dense_seconds else None,
        frames_per_second=count / spent if spent else 0.0,
    )


def headline(record: RunRecord, totals: Totals | None = None) -> str:
    """Say in one sentence what a run spent, how similar its features are, and what is left.

    ``totals`` are those of the run, if they are at hand.
    """
    t = totals or summarise(record)
    if not t.frames:
        return "No frame was encoded."
    parts = [
        f"{counted(t.frames, 'frame')} encoded with {percent(t.cost)} of the "
        "work of encoding each one from scratch"
    ]
    if t.similarity is not None:
        where = f"{counted(t.measured, 'frame')} measured"
        parts.append(f"features are {t.similarity:.3f} similar to that on the {where}")
    if t.tokens_kept != t.tokens_before:
        parts.append(
            f"{t.tokens_kept_per_frame:.4g} of {record.model.features} tokens kept per frame, "
            f"{t.reduction:.3g}x fewer for the language model"
        )
    # Said in the sentence itself, because a sentence is what gets quoted.
    return "; ".join(parts) + (" (random weights)." if record.model.random else ".")


def percent(fraction: float) -> str:
    """Write a fraction as a percentage: one digit after the point only below ten."""
    value = 100 * fraction
    return f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def counted(number: int, noun: str) -> str:
    """Write a number of things: "1 frame", "2 frames"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _count(frames: Sequence[FrameRecord], kind: str) -> int:
    return sum(f.kind == kind for f in frames)


def _median(values: Sequence[float]) -> float | None:
    if not values:
        return None
    ordered, middle = sorted(values), len(values) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
