# SPDX-License-Identifier: Apache-2.0
"""Similarity of cached features to dense ones on a clip, and the work they take.

The error of a frame is 1 - cosine, averaged over its tokens. First frames, which are dense, are
left out of the similarities and counted in the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stc_video.cacher import Cacher, attach_cacher
from stc_video.cacher.stats import DENSE, CacheStats
from stc_video.clock import Clock
from stc_video.config import DEFAULT_STREAM, CacheConfig
from stc_video.loading.vision import LoadedModel
from stc_video.studies.fidelity.floors import FLOOR_EVERY, FLOORS, measure_floors
from stc_video.studies.metrics import iou
from stc_video.studies.reference_masks import SaliencyMarker
from stc_video.video import VideoError, VideoSource

#: a clip's first frames, sent through a new cacher before what is timed
_WARM_UP = 2


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
    salient
        What the saliency head marks, (1, 1, height, width) bool for each frame; empty without
        a marker.
    grid
        (H, W) of the patch tokens.
    problem
        Why the clip ended early, or None.
    floors
        Name of a small change -> its error, mean over one frame in eight; empty if not wanted.
    """

    name: str
    fps: float
    inputs: tuple[dict[str, Tensor], ...]
    dense: tuple[Tensor, ...]
    salient: tuple[Tensor, ...] = ()
    grid: tuple[int, int] = (0, 0)
    problem: str | None = None
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self.inputs)


@dataclass
class Fidelity:
    """The measurements of one policy on one clip.

    Attributes
    ----------
    costs
        Fraction of a dense frame's operations, of every frame.
    kinds
        "dense", "cached" or "unchanged", of every frame.
    similarities
        Cosine to the dense encode, averaged over the tokens, of every frame but the first.
    overlaps
        Intersection over union of what the saliency head marks by the frame's tokens and by its
        dense ones, of every frame but the first; empty without a marker.
    seconds
        How long every frame took.
    dense_seconds
        How long dense frames of the stock tower took, in between.
    cache
        What the cacher said of itself: audits, and what it promised; None without a cacher.
    """

    costs: list[float] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    similarities: list[float] = field(default_factory=list)
    overlaps: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    dense_seconds: list[float] = field(default_factory=list)
    cache: CacheStats | None = None

    @property
    def cost(self) -> float:
        """Mean over all frames."""
        return float(np.mean(self.costs))

    @property
    def similarity(self) -> float:
        """Mean over the frames; 1 for a clip of one frame."""
        return float(np.mean(self.similarities)) if self.similarities else 1.0

    @property
    def dense_share(self) -> float:
        """Fraction of the frames that were encoded densely, the first included."""
        return self.kinds.count(DENSE) / len(self.kinds)


def encode_densely(
    opened: Mapping[float, Sequence[tuple[str, VideoSource]]],
    model: LoadedModel,
    *,
    marker: SaliencyMarker | None = None,
    floors: bool = False,
    on_frame: Callable[[], None] = lambda: None,
) -> list[DenseClip]:
    """Encode clips without a cacher.

    Parameters
    ----------
    opened
        Frames per second -> names and frames, as `open_at_rates` gives them; closed afterwards.
    model
        The tower.
    marker
        Marks what is salient, by the tokens of its own tower.
    floors
        Measure what small changes of the pictures do, too.
    on_frame
        Is called after each frame.

    Returns
    -------
    list of DenseClip
        Of a clip that is damaged further on, the frames before the damage, and its `problem`.

    Raises
    ------
    VideoError
        If not even the first frame of one can be decoded.
    """
    options: Any = {"marker": marker, "floors": floors, "on_frame": on_frame}
    clips = []
    for fps, sources in opened.items():
        for name, source in sources:
            with source:
                pictures = (frame.image for frame in source)
                clips.append(encode_pictures(name, fps, pictures, model, **options))
    return clips


def encode_pictures(
    name: str,
    fps: float,
    pictures: Iterable[npt.NDArray[np.uint8]],
    model: LoadedModel,
    *,
    marker: SaliencyMarker | None = None,
    floors: bool = False,
    on_frame: Callable[[], None] = lambda: None,
) -> DenseClip:
    """Encode pictures (H, W, 3) as the frames of a clip, without a cacher.

    The other arguments, and what is raised: see `encode_densely`.
    """
    inputs: list[dict[str, Tensor]] = []
    dense: list[Tensor] = []
    changed: list[dict[str, float]] = []
    problem = None
    with torch.inference_mode():
        try:
            for picture in pictures:
                inputs.append(model.pixels([picture]))
                dense.append(model.encode(inputs[-1]))
                if floors and len(dense) % FLOOR_EVERY == 1:
                    changed.append(measure_floors(picture, model, dense[-1]))
                on_frame()
        except VideoError as error:
            if not dense:
                raise
            problem = str(error)
        salient = [] if marker is None else [marker.map_of(tokens, model.grid) for tokens in dense]
    return DenseClip(
        name,
        fps,
        tuple(inputs),
        tuple(dense),
        tuple(salient),
        model.grid,
        problem,
        {floor: float(np.mean([one[floor] for one in changed])) for floor in FLOORS if changed},
    )


def problems_of(clips: Iterable[DenseClip]) -> list[str]:
    """Say which clips ended early and why, once for all their frame rates."""
    found = (f"{clip.name} ended early: {clip.problem}" for clip in clips if clip.problem)
    return list(dict.fromkeys(found))


def measure(
    clip: DenseClip,
    model: LoadedModel,
    config: CacheConfig | None,
    on_frame: Callable[[], None] = lambda: None,
    *,
    marker: SaliencyMarker | None = None,
    dense_every: int = 0,
) -> Fidelity:
    """Encode a clip with a cacher, which is taken off again.

    Parameters
    ----------
    clip
        What `encode_densely` returned.
    model
        The tower, without a cacher.
    config
        The cacher's settings; None for no cacher, as a control.
    on_frame
        Is called after each frame.
    marker
        Compares what is salient; the clip must have been encoded with it.
    dense_every
        After one in so many frames a dense one of the stock tower is timed; 0: never.

    Returns
    -------
    Fidelity
        Its times are after two frames that are not counted.
    """
    found = Fidelity()
    with torch.inference_mode(), _attached(model, config) as cacher:
        if dense_every:
            _warm_up(clip, model, cacher)
        clock = Clock(model.device)
        for number, (inputs, dense) in enumerate(zip(clip.inputs, clip.dense, strict=True)):
            clock.lap()
            tokens = model.encode(inputs)
            found.seconds.append(clock.lap())
            records = [] if cacher is None else cacher.last_frames
            found.costs += [record.cost for record in records] or [1.0]
            found.kinds += [record.kind for record in records] or [DENSE]
            if number:
                cosines = torch.cosine_similarity(tokens.float(), dense.float(), dim=-1)
                found.similarities.append(float(cosines.mean()))
            if number and marker is not None:
                found.overlaps.append(iou(marker.map_of(tokens, clip.grid), clip.salient[number]))
            if dense_every and number % dense_every == 0:
                found.dense_seconds.append(_time_stock(inputs, model, cacher, clock))
            on_frame()
        found.cache = None if cacher is None else cacher.stats().streams.get(DEFAULT_STREAM)
    return found


@contextmanager
def _attached(model: LoadedModel, config: CacheConfig | None) -> Iterator[Cacher | None]:
    """Put a cacher on the tower for the block, or none."""
    if config is None:
        yield None
        return
    cacher = attach_cacher(model.tower, config)
    try:
        yield cacher
    finally:
        cacher.detach()


def _warm_up(clip: DenseClip, model: LoadedModel, cacher: Cacher | None) -> None:
    """Run some frames as a stream of its own: first calls plan kernels and rearrange weights."""
    name = "warm-up"
    # On a GPU each number of rows is captured as a graph when it first occurs.
    count = clip.frames if model.device.type == "cuda" else _WARM_UP
    with nullcontext() if cacher is None else cacher.streams([name]):
        for inputs in clip.inputs[:count]:
            model.encode(inputs)
    if cacher is not None:
        cacher.remove(name)


def _time_stock(
    inputs: dict[str, Tensor], model: LoadedModel, cacher: Cacher | None, clock: Clock
) -> float:
    """Encode a frame as if no cacher were attached; the seconds."""
    with nullcontext() if cacher is None else cacher.paused():
        clock.lap()
        model.encode(inputs)
        return clock.lap()
