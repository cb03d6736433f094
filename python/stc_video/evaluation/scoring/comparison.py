# SPDX-License-Identifier: Apache-2.0
"""How much of the accuracy of a dense model is kept, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_video.evaluation.scoring.columns import columns_of, headline_column
from stc_video.evaluation.scoring.table import Counts

_SAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """One configuration beside the dense one, on the same questions.

    Attributes
    ----------
    column
        Which score is compared.
    score, dense
        The two; None without a question.
    retention
        Their ratio; None if dense has nothing right.
    low, high
        95 % interval of the retention, by a paired bootstrap over videos. None where a sample has
        no right dense answer, or there is one video only.
    videos
        How many videos were drawn from.
    gained, lost
        Answers that are right here and wrong there, and the other way round.
    """

    column: str
    score: float | None
    dense: float | None
    retention: float | None
    low: float | None
    high: float | None
    videos: int
    gained: int
    lost: int


def compare(benchmark: str, counts: Counts, dense: Counts, *, seed: int = 0) -> Comparison:
    """Compare two configurations that were asked the same.

    Parameters
    ----------
    benchmark
        Whose column.
    counts, dense
        Of both.
    seed
        Of the bootstrap.
    """
    if counts.videos != dense.videos or counts.tasks != dense.tasks:
        raise ValueError("compare: both configurations must have been asked the same questions")
    name = headline_column(benchmark)
    column = next(c for c in columns_of(benchmark, counts.tasks) if c.name == name)

    def score(side: Counts, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return column.score(side.tasks, weights @ side.right, weights @ side.total)

    videos = len(counts.videos)
    once = np.ones(videos)
    ours, theirs = float(score(counts, once)), float(score(dense, once))
    drawn = np.random.default_rng(seed).multinomial(videos, [1 / videos] * videos, _SAMPLES)
    weights = drawn.astype(float)
    drawn_ours, drawn_theirs = score(counts, weights), score(dense, weights)
    there = ~np.isnan(drawn_ours) & ~np.isnan(drawn_theirs)  # else no question was drawn
    usable = videos > 1 and bool(there.any()) and bool((drawn_theirs[there] > 0).all())
    ratios = drawn_ours[there] / drawn_theirs[there] if usable else np.empty(0)
    low, high = np.quantile(ratios, [0.025, 0.975]) if usable else (None, None)
    pairs = [(right, dense.verdicts[key]) for key, right in counts.verdicts.items()]
    return Comparison(
        column=name,
        score=None if np.isnan(ours) else ours,
        dense=None if np.isnan(theirs) else theirs,
        retention=ours / theirs if theirs > 0 and not np.isnan(ours) else None,
        low=None if low is None else float(low),
        high=None if high is None else float(high),
        videos=videos,
        gained=sum(right is True and before is not True for right, before in pairs),
        lost=sum(right is not True and before is True for right, before in pairs),
    )
