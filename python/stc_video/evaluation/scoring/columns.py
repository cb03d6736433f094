# SPDX-License-Identifier: Apache-2.0
"""The columns of the papers' tables, and how each is averaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stc_video.evaluation.loaders import egoschema, mlvu, ovo_bench, streaming_bench, video_mme

#: from right answers and answers by task, (..., T) each, to a score (...)
Ratio = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name
        As in the papers.
    groups
        Tasks. Of one group each question counts the same (micro) or each task (macro); of several
        groups the mean of the groups is taken.
    average
        "micro" or "macro", inside a group.
    note
        Who averages so.
    """

    name: str
    groups: tuple[tuple[str, ...], ...]
    average: str = "micro"
    note: str = ""

    @property
    def tasks(self) -> tuple[str, ...]:
        """All tasks in it."""
        return tuple(task for group in self.groups for task in group)

    def score(
        self, tasks: Sequence[str], right: NDArray[np.float64], total: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Score of right answers and answers by task (..., T): (...), NaN if there is none.

        Tasks and groups without a question are left out of means, as the official code does.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            parts = [self._group(group, tasks, right, total) for group in self.groups]
            return _mean(np.stack(parts, axis=-1))

    def _group(
        self,
        group: tuple[str, ...],
        tasks: Sequence[str],
        right: NDArray[np.float64],
        total: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        rows = [number for number, task in enumerate(tasks) if task in group]
        if self.average == "macro":
            return _mean(right[..., rows] / total[..., rows])
        made: NDArray[np.float64] = right[..., rows].sum(-1) / total[..., rows].sum(-1)
        return made


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the last axis of what is a number; NaN if nothing is."""
    there = ~np.isnan(values)
    made: NDArray[np.float64] = np.where(there, values, 0.0).sum(-1) / there.sum(-1)
    return made


def columns_of(benchmark: str, tasks: Sequence[str]) -> list[Column]:
    """Return the columns of a benchmark's table; tasks that it does not know get one each."""
    columns = _COLUMNS.get(benchmark, lambda: [])()
    known = {task for column in columns for task in column.tasks}
    extra = [task for task in dict.fromkeys(tasks) if task not in known]
    everything = tuple(dict.fromkeys([*known, *tasks]))
    columns += [Column(task, ((task,),)) for task in extra]
    return [*columns, Column("micro", (everything,), note="every question counts the same")]


def headline_column(benchmark: str) -> str:
    """Name of the column that a benchmark is summed up by."""
    return {"ovo-bench": "Total", "mlvu": "M-Avg", "egoschema": "subset"}.get(benchmark, "micro")


def _each(tasks: Sequence[str]) -> list[Column]:
    return [Column(task, ((task,),)) for task in tasks]


def _ovo_bench() -> list[Column]:
    o = ovo_bench
    parts = (("Backward", o.BACKWARD), ("Real-time", o.REAL_TIME), ("Forward", o.FORWARD))
    made: list[Column] = []
    for name, tasks in parts:
        made += [*_each(tasks), Column(name, (tasks,), "macro")]
    groups = (o.BACKWARD, o.REAL_TIME, o.FORWARD)
    return [
        *made,
        Column("Total", groups, "macro", "mean of the three columns: the benchmark's own"),
        Column("RT+Back", groups[:2], "macro", "mean of two columns: SimpleStream, SelectStream"),
        Column("12 tasks", (sum(groups, ()),), "macro", "mean of all tasks: its first release"),
    ]


def _streaming_bench() -> list[Column]:
    s = streaming_bench
    return [
        *_each(s.REAL_TIME),
        Column("Real-time", (s.REAL_TIME,), note="what papers call StreamingBench"),
        *_each(s.OMNI),
        Column("Omni", (s.OMNI,)),
        *_each((s.SEQUENTIAL, s.PROACTIVE)),
    ]


def _mlvu() -> list[Column]:
    tasks = tuple(mlvu.TASKS)
    return [*_each(tasks), Column("M-Avg", (tasks,), "macro", "mean of tasks: MLVU, lmms-eval")]


def _video_mme() -> list[Column]:
    return _each(video_mme.DURATIONS)


def _egoschema() -> list[Column]:
    return _each((egoschema.TASK,))


_COLUMNS: dict[str, Callable[[], list[Column]]] = {
    "ovo-bench": _ovo_bench,
    "streamingbench": _streaming_bench,
    "mlvu": _mlvu,
    "egoschema": _egoschema,
    "video-mme": _video_mme,
}
