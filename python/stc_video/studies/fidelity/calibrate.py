# SPDX-License-Identifier: Apache-2.0
"""Calibration of the ``motion`` policy on clips."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from stc_video.calibration import Aim, Calibration, Measured
from stc_video.config import CacheConfig
from stc_video.loading.vision import LoadedModel
from stc_video.studies.fidelity.measure import DenseClip, measure

#: what a calibration tries, from the best similarity to the lowest cost
AIMS = (
    Aim(error=0.003, level=0.8),
    Aim(error=0.004, level=0.6),
    Aim(error=0.006, level=0.5),
    Aim(error=0.004, level=0.2, tail=False),
    Aim(error=0.012, level=0.15, tail=False),
)


def calibrate(
    clips: Sequence[DenseClip],
    model: LoadedModel,
    aims: Iterable[Aim] = AIMS,
    on_frame: Callable[[], None] = lambda: None,
    facts: dict[str, str] | None = None,
) -> Calibration:
    """Find out which aim of the ``motion`` policy gives which similarity on some clips.

    Parameters
    ----------
    clips
        Clips like those that will be seen, at the frame rates that will be used.
    model
        The tower.
    aims
        What is tried.
    on_frame
        Is called after each frame.
    facts
        What to keep with the result.

    Raises
    ------
    ValueError
        If no clip has a second frame.
    """
    clips = [clip for clip in clips if clip.frames > 1]
    if not clips:
        raise ValueError("calibrate: at least one clip must have two frames or more")
    points = []
    for aim in aims:
        config = CacheConfig(calibration=Calibration((Measured(aim, 0.0, 0.0, 0.0),)), audits=False)
        results = [measure(clip, model, config, on_frame) for clip in clips]
        means = [result.similarity for result in results]
        cost = float(np.mean([result.cost for result in results]))
        rounded = (round(value, 5) for value in (float(np.mean(means)), min(means), cost))
        points.append(Measured(aim, *rounded))
    return Calibration(tuple(points), dict(facts or {}))
