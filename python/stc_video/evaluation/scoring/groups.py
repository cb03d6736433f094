# SPDX-License-Identifier: Apache-2.0
"""Accuracy by category and by folder of the videos, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from stc_video.evaluation.scoring.table import Counts

_SAMPLES = 2000


@dataclass(frozen=True)
class Group:
    """Accuracy on a part of the questions.

    Attributes
    ----------
    by
        "all", "task", or "folder": the first folder on the way to a video.
    name
        Of the task or folder.
    right, total
        Right answers, and answers that count.
    accuracy
        Every question counts the same.
    low, high
        95 % interval by a bootstrap over videos; None for one video.
    """

    by: str
    name: str
    right: int
    total: int
    accuracy: float
    low: float | None
    high: float | None


def groups(counts: Counts, *, seed: int = 0) -> list[Group]:
    """Split what is right by task and by folder, leaving out parts without a question."""
    every = np.ones(len(counts.videos), bool), np.ones(len(counts.tasks), bool)
    parts = [("all", "all", *every)]
    tasks, folders = np.array(counts.tasks), [_folder(video) for video in counts.videos]
    parts += [("task", task, every[0], tasks == task) for task in counts.tasks]
    if len(set(folders)) > 1:
        parts += [("folder", folder, np.array([f == folder for f in folders]), every[1])
                  for folder in sorted(set(folders))]  # fmt: skip
    made = []
    for by, name, rows, columns in parts:
        right = counts.right[rows][:, columns].sum(1)
        total = counts.total[rows][:, columns].sum(1)
        if total.sum():
            low, high = _interval(right, total, seed)
            ratio = float(right.sum() / total.sum())
            made.append(Group(by, name, int(right.sum()), int(total.sum()), ratio, low, high))
    return made


def _folder(video: str) -> str:
    path = PurePosixPath(video)
    return path.parts[0] if len(path.parts) > 1 else ""


def _interval(
    right: NDArray[np.float64], total: NDArray[np.float64], seed: int
) -> tuple[float | None, float | None]:
    """Bootstrap over videos with (V,) right answers and answers."""
    asked = total > 0
    right, total = right[asked], total[asked]
    count = len(right)
    if count < 2:
        return None, None
    weights = np.random.default_rng(seed).multinomial(count, [1 / count] * count, _SAMPLES)
    low, high = np.quantile((weights @ right) / (weights @ total), [0.025, 0.975])
    return float(low), float(high)
