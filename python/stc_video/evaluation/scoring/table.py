# SPDX-License-Identifier: Apache-2.0
"""Right answers by video and task, and the scores that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_video.evaluation.queries import Query
from stc_video.evaluation.scoring.columns import columns_of
from stc_video.evaluation.scoring.parsers import is_right


@dataclass(frozen=True)
class Given:
    """An answer as far as scoring needs it; ``time`` is that of a proactive one."""

    text: str | None
    time: float | None = None


@dataclass(frozen=True)
class Counts:
    """What is right, by video and task.

    Attributes
    ----------
    tasks, videos
        Names of the columns and rows.
    right, total
        (V, T) right answers, and answers that count.
    verdicts
        Name of a question -> whether it is right; None if it does not count.
    """

    tasks: list[str]
    videos: list[str]
    right: NDArray[np.float64]
    total: NDArray[np.float64]
    verdicts: dict[str, bool | None]


@dataclass(frozen=True)
class Score:
    """One number of a table; None where there is no question."""

    column: str
    value: float | None
    right: int
    total: int


def count(
    benchmark: str, queries: Sequence[Query], answers: Mapping[str, Given], parser: str
) -> Counts:
    """Count right answers.

    Parameters
    ----------
    benchmark
        Whose rules.
    queries
        What was to be asked. Those without an answer are wrong.
    answers
        By the name of the question.
    parser
        "official" or "strict".
    """
    tasks = list(dict.fromkeys(query.task for query in queries))
    videos = sorted({query.video for query in queries})
    row = {video: number for number, video in enumerate(videos)}
    column = {task: number for number, task in enumerate(tasks)}
    right, total = np.zeros((2, len(videos), len(tasks)))
    verdicts: dict[str, bool | None] = {}
    for query in queries:
        given = answers.get(query.key, Given(None))
        verdict = is_right(benchmark, query, given.text, given.time, parser)
        verdicts[query.key] = verdict
        if verdict is not None:
            right[row[query.video], column[query.task]] += verdict
            total[row[query.video], column[query.task]] += 1
    return Counts(tasks, videos, right, total, verdicts)


def scores(benchmark: str, counts: Counts) -> list[Score]:
    """Return the columns of the benchmark's table."""
    right, total = counts.right.sum(0), counts.total.sum(0)
    made = []
    for column in columns_of(benchmark, counts.tasks):
        rows = [number for number, task in enumerate(counts.tasks) if task in column.tasks]
        value = float(column.score(counts.tasks, right, total))
        made.append(
            Score(
                column.name,
                None if np.isnan(value) else value,
                int(right[rows].sum()),
                int(total[rows].sum()),
            )
        )
    return made
