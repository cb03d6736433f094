# SPDX-License-Identifier: Apache-2.0
"""How similar cached features stay to dense ones, and at which share of the work.

The error of a frame is 1 - cosine, averaged over its tokens. First frames, which are dense, are
left out of the similarities and counted in the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stc_video.cacher.handle import attach_cacher
from stc_video.calibration import Aim, Calibration, Measured
from stc_video.config import CacheConfig
from stc_video.models.load import LoadedModel
from stc_video.studies.clips import open_clips

__all__ = ["AIMS", "DenseClip", "Fidelity", "calibrate", "encode_densely", "measure"]

#: what a calibration tries, from the best similarity to the lowest cost
AIMS = (
    Aim(error=0.003, level=0.8),
    Aim(error=0.004, level=0.6),
    Aim(error=0.006, level=0.5),
    Aim(error=0.004, level=0.2, tail=False),
    Aim(error=0.012, level=0.15, tail=False),
)


@dataclass(frozen=True, eq=False)
class DenseClip:
    """A clip at one frame rate: what the tower takes, and what it makes of it without a cacher.

    Attributes
    ----------
    name
        Of the clip.
    fps
        Sampled frames per second.
    inputs
        Arguments of the tower for each frame.
    dense
        The tower's tokens (1, T, D) for each frame.
    """

    name: str
    fps: float
    inputs: tuple[dict[str, Tensor], ...]
    dense: tuple[Tensor, ...]


@dataclass(frozen=True)
class Fidelity:
    """What a policy did to one clip.

    Attributes
    ----------
    cost
        Mean fraction of a dense frame's operations, over all frames.
    similarities
        Cosine to the dense encode, averaged over the tokens, of every frame but the first.
    """

    cost: float
    similarities: tuple[float, ...]

    @property
    def similarity(self) -> float:
        """Mean over the frames; 1 for a clip of one frame."""
        return float(np.mean(self.similarities)) if self.similarities else 1.0


def encode_densely(
    paths: Sequence[Path],
    model: LoadedModel,
    *,
    fps: float,
    max_frames: int,
    on_frame: Callable[[], None] = lambda: None,
) -> list[DenseClip]:
    """Encode clips without a cacher.

    Raises
    ------
    VideoError
        If one cannot be opened or decoded.
    """
    clips = []
    for name, source in open_clips(paths, fps=fps, max_frames=max_frames):
        inputs, dense = [], []
        with source, torch.inference_mode():
            for frame in source:
                inputs.append(model.pixels([frame.image]))
                dense.append(model.encode(inputs[-1]))
                on_frame()
        clips.append(DenseClip(name, fps, tuple(inputs), tuple(dense)))
    return clips


def measure(
    clip: DenseClip,
    model: LoadedModel,
    config: CacheConfig,
    on_frame: Callable[[], None] = lambda: None,
) -> Fidelity:
    """Encode a clip with a cacher, which is taken off again."""
    cacher = attach_cacher(model.tower, config)
    similarities = []
    try:
        with torch.inference_mode():
            for inputs, dense in zip(clip.inputs, clip.dense, strict=True):
                cosines = torch.cosine_similarity(
                    model.encode(inputs).float(), dense.float(), dim=-1
                )
                similarities.append(float(cosines.mean()))
                on_frame()
        return Fidelity(cacher.stats().cost, tuple(similarities[1:]))
    finally:
        cacher.detach()


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
    clips = [clip for clip in clips if len(clip.inputs) > 1]
    if not clips:
        raise ValueError("calibrate: at least one clip must have two frames or more")
    points = []
    for aim in aims:
        config = CacheConfig(calibration=Calibration((Measured(aim, 0.0, 0.0, 0.0),)))
        results = [measure(clip, model, config, on_frame) for clip in clips]
        means = [result.similarity for result in results]
        cost = float(np.mean([result.cost for result in results]))
        rounded = (round(value, 5) for value in (float(np.mean(means)), min(means), cost))
        points.append(Measured(aim, *rounded))
    return Calibration(tuple(points), dict(facts or {}))
