# SPDX-License-Identifier: Apache-2.0
"""Cache settings against cost and fidelity, over clips and frame rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from stc_video.calibration import Calibration
from stc_video.loading.vision import LoadedModel
from stc_video.studies.fidelity.floors import FLOORS
from stc_video.studies.fidelity.measure import DenseClip, Fidelity, measure, problems_of
from stc_video.studies.fidelity.settings import CacheSetting
from stc_video.studies.metrics import pareto_front
from stc_video.studies.reference_masks import SaliencyMarker

#: Name of the mean over the clips.
ALL = "all"
#: After one in so many frames a dense one of the stock tower is timed.
DENSE_EVERY = 4

_NOTHING = float("nan")


@dataclass(frozen=True)
class FidelityRow:
    """One setting on one clip at one frame rate, or on all clips.

    Attributes
    ----------
    setting, fps, clip
        Of what; the clip is "all" for the mean over the clips, each of which counts the same.
        Percentile and worst frames are then those of all frames together, and so are the medians.
    frames
        Frames of the clip.
    cost
        Mean fraction of a dense frame's operations, the first frame included.
    dense_share
        Fraction of the frames that were encoded densely, the first included.
    similarity, similarity_p5, worst_frame
        Cosine to the dense encode: mean, 5th percentile and lowest of the frames but the first.
        1 for a clip of one frame.
    worst_clip_error
        1 - similarity of the clip that is worst at it; NaN in the row of a clip.
    saliency_iou, saliency_iou_worst
        Intersection over union of what the saliency head marks by cached and by dense tokens:
        mean and lowest frame; NaN where it was not measured.
    time_ratio
        Mean time of a frame over that of a dense frame of the stock tower; NaN, as the next two,
        where no time was taken.
    frame_ms, dense_ms
        Median milliseconds of a frame, and of a dense one.
    on_front
        Whether no other setting costs at most as much and has at most the error, and is better in
        one of the two, on this clip at this frame rate.
    audits
        Frames that the cacher encoded both ways to measure its error.
    measured
        Mean cosine of the audits; NaN without one.
    promise_kept
        Whether every clip had the mean cosine that its quality promises; None without a promise.
    """

    setting: CacheSetting
    fps: float
    clip: str
    frames: int
    cost: float
    dense_share: float
    similarity: float
    similarity_p5: float
    worst_frame: float
    worst_clip_error: float
    saliency_iou: float
    saliency_iou_worst: float
    time_ratio: float
    frame_ms: float
    dense_ms: float
    on_front: bool = False
    audits: int = 0
    measured: float = _NOTHING
    promise_kept: bool | None = None

    @property
    def error(self) -> float:
        """1 - similarity, without the rounding of float32 below 0."""
        return max(0.0, 1.0 - self.similarity)


@dataclass(frozen=True, eq=False)
class FidelityStudy:
    """The whole comparison.

    Attributes
    ----------
    settings, rates
        What was compared, at which frames per second.
    clips
        Name -> frames at each rate.
    rows
        One per rate, clip and setting, in this order, those of `ALL` first.
    measured
        (setting, rate, clip) -> every frame.
    floors
        (rate, clip) -> name of a small change of the pictures -> its error; see `floors.py`.
    notes
        What a reader must know besides.
    problems
        Clips that ended early, with the reason.
    """

    settings: tuple[CacheSetting, ...]
    rates: tuple[float, ...]
    clips: dict[str, tuple[int, ...]]
    rows: tuple[FidelityRow, ...]
    measured: dict[tuple[CacheSetting, float, str], Fidelity]
    floors: dict[tuple[float, str], dict[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def frames(self) -> int:
        """Number of frames of all clips at all rates."""
        return sum(map(sum, self.clips.values()))

    def at(self, fps: float, clip: str = ALL) -> list[FidelityRow]:
        """Return the rows of a rate and a clip, in the order of the settings."""
        return [row for row in self.rows if row.fps == fps and row.clip == clip]

    @property
    def frame_counts(self) -> dict[str, tuple[int, ...]]:
        """Clip -> number of frames at each rate."""
        return self.clips

    @property
    def model_facts(self) -> tuple[tuple[str, str], ...]:
        """Nothing that the model itself does not know."""
        return ()

    def table(self) -> list[dict[str, object]]:
        """Return the rows by column, with the setting's parameters first, and floors last."""
        return [_line(row) | self._floor_cells(row) for row in self.rows]

    def _floor_cells(self, row: FidelityRow) -> dict[str, object]:
        found = self.floors.get((row.fps, row.clip), {})
        return {f"floor_{name.replace(' ', '_')}": found.get(name, _NOTHING) for name in FLOORS}


def run_study(
    clips: Sequence[DenseClip],
    settings: Sequence[CacheSetting],
    model: LoadedModel,
    *,
    calibration: Calibration | None = None,
    marker: SaliencyMarker | None = None,
    times: bool = True,
    on_frame: Callable[[], None] = lambda: None,
) -> FidelityStudy:
    """Measure every setting on every clip.

    Parameters
    ----------
    clips
        At least one, each at one frame rate; the same clips at every rate.
    settings
        At least one.
    model
        The tower, without a cacher.
    calibration
        Of the ``motion`` policy, instead of the one in the package.
    marker
        Compares what is salient; the clips must have been encoded with it.
    times
        Whether to take times, which is a third more work.
    on_frame
        Is called after each frame of each setting.

    Raises
    ------
    ValueError
        If no clip has a second frame.
    """
    if not any(clip.frames > 1 for clip in clips):
        raise ValueError("fidelity: at least one clip must have two frames or more")
    measured = {
        (setting, clip.fps, clip.name): measure(
            clip,
            model,
            setting.config(calibration),
            on_frame,
            marker=marker,
            dense_every=DENSE_EVERY if times else 0,
        )
        for clip in clips
        for setting in settings
    }
    rates = tuple(dict.fromkeys(clip.fps for clip in clips))
    names = tuple(dict.fromkeys(clip.name for clip in clips))
    problems = tuple(problems_of(clips))
    return FidelityStudy(
        settings=tuple(settings),
        rates=rates,
        clips={n: tuple(clip.frames for clip in clips if clip.name == n) for n in names},
        rows=tuple(_rows(settings, rates, names, measured)),
        measured=measured,
        floors=_floors(clips, rates),
        notes=problems,
        problems=problems,
    )


def _floors(
    clips: Sequence[DenseClip], rates: Sequence[float]
) -> dict[tuple[float, str], dict[str, float]]:
    """Errors of small changes for each clip, and their mean over the clips."""
    made = {(clip.fps, clip.name): dict(clip.floors) for clip in clips if clip.floors}
    for fps in rates:
        own = [clip.floors for clip in clips if clip.fps == fps and clip.floors]
        if own:
            made[fps, ALL] = {name: _mean([one[name] for one in own]) for name in own[0]}
    return made


def _rows(
    settings: Sequence[CacheSetting],
    rates: Sequence[float],
    names: Sequence[str],
    measured: dict[tuple[CacheSetting, float, str], Fidelity],
) -> Iterator[FidelityRow]:
    """Give a row for each rate, each clip and all of them, and each setting."""
    groups = {ALL: names} | {name: (name,) for name in names}
    for fps in rates:
        for shown, parts in groups.items():
            rows = [
                _row(setting, fps, shown, [measured[setting, fps, part] for part in parts])
                for setting in settings
            ]
            best = front([row.cost for row in rows], [-row.error for row in rows])
            yield from (replace(row, on_front=n in best) for n, row in enumerate(rows))


def front(costs: Iterable[float], gains: Iterable[float]) -> set[int]:
    """Return the numbers of the points on the Pareto front."""
    return set(pareto_front(list(costs), list(gains)))


def _row(setting: CacheSetting, fps: float, clip: str, found: Sequence[Fidelity]) -> FidelityRow:
    """Put what was measured on some clips into one row."""
    similarities = [value for one in found for value in one.similarities] or [1.0]
    overlaps = [value for one in found for value in one.overlaps]
    timed = [one for one in found if one.dense_seconds]
    similarity = float(np.mean([one.similarity for one in found]))
    worst = min(one.similarity for one in found)
    caches = [one.cache for one in found if one.cache is not None]
    promised = [cache.promised for cache in caches if cache.promised is not None]
    measured = [c.measured_cosine for c in caches if c.measured_cosine is not None]
    return FidelityRow(
        setting=setting,
        fps=fps,
        clip=clip,
        frames=sum(len(one.costs) for one in found),
        cost=float(np.mean([one.cost for one in found])),
        dense_share=float(np.mean([one.dense_share for one in found])),
        similarity=similarity,
        similarity_p5=float(np.percentile(similarities, 5)),
        worst_frame=min(similarities),
        worst_clip_error=max(0.0, 1.0 - worst) if clip == ALL else _NOTHING,
        saliency_iou=_mean([float(np.mean(one.overlaps)) for one in found if one.overlaps]),
        saliency_iou_worst=min(overlaps, default=_NOTHING),
        time_ratio=_mean([_time_ratio(one) for one in timed]),
        frame_ms=_median_ms([one.seconds for one in timed]),
        dense_ms=_median_ms([one.dense_seconds for one in timed]),
        audits=sum(cache.audits for cache in caches),
        measured=_mean(measured),
        promise_kept=worst >= max(promised) if promised else None,
    )


def _time_ratio(found: Fidelity) -> float:
    return float(np.mean(found.seconds) / np.mean(found.dense_seconds))


def _median_ms(seconds: Sequence[Sequence[float]]) -> float:
    together = [second for part in seconds for second in part]
    return 1e3 * float(np.median(together)) if together else _NOTHING


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else _NOTHING


def _line(row: FidelityRow) -> dict[str, object]:
    own = {name: value for name, value in vars(row).items() if name != "setting"}
    line = asdict(row.setting) | own
    units = {"frame_ms": "frame_median_ms", "dense_ms": "dense_median_ms"}
    named = {units.get(name, name): value for name, value in line.items()}
    # The error beside the similarity it is made from.
    at = list(named).index("similarity")
    items = list(named.items())
    return dict([*items[:at], ("error", row.error), *items[at:]])
