# SPDX-License-Identifier: Apache-2.0
"""The page of a fidelity study: cost against fidelity, every frame, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stc_video.report.summary import counted
from stc_video.report.verdict import SIMILAR, Tried, Verdict, best_verdict
from stc_video.studies.fidelity.settings import CacheSetting
from stc_video.studies.fidelity.study import (
    ALL,
    DENSE_EVERY,
    FidelityRow,
    FidelityStudy,
    front,
)
from stc_video.studies.page import StudyPage, TextTable, shown_number

#: What is shown first of the frames, and beside it, if it was measured.
_FIRST = (CacheSetting("motion", quality=0.983), CacheSetting("stc", interval=2, ratio=0.25))

COLUMNS = (
    "cost",
    "time",
    "median per frame",
    "dense frames",
    "error",
    "95th percentile",
    "worst frame",
    "worst clip",
    "saliency IoU",
    "worst IoU",
    "promise",
)


class Line(NamedTuple):
    """One setting in a table."""

    name: str
    on_front: bool
    cells: tuple[str, ...]


class Measure(NamedTuple):
    """A quantity that the page can draw: an error, of which less is better, or an overlap."""

    words: str
    is_error: bool


MEASURES = {
    "error": Measure("error, mean", True),
    "error_p5": Measure("error, 95th percentile of the frames", True),
    "error_worst": Measure("error of the worst frame", True),
    "saliency_iou": Measure("saliency IoU", False),
}
COSTS = {
    "cost": "fraction of the dense multiply-adds",
    "time_ratio": "fraction of the dense time",
}


def _values(study: FidelityStudy) -> dict[str, Any]:
    """Return what the template needs."""
    measures, costs = _drawn(study)
    return {
        "data": _page_data(study, measures, costs),
        "has_saliency": "saliency_iou" in measures,
        "has_times": "time_ratio" in costs,
        "dense_every": DENSE_EVERY,
        "measures": measures,
        "costs": costs,
        "shown_first": _shown_first(study),
        "columns": COLUMNS,
        "tables": [
            (
                rate_name(fps),
                [
                    (f"{clip}{floor_words(study, fps, clip)}", _lines(study, fps, clip))
                    for clip in (ALL, *study.clips)
                ],
            )
            for fps in study.rates
        ],
    }


def headline(study: FidelityStudy) -> str:
    """Say in one sentence what was compared, and what is cheap and similar."""
    text = (
        f"{counted(len(study.settings), 'cache setting')} on {counted(len(study.clips), 'clip')}, "
        f"{counted(study.frames, 'frame')}"
    )
    cheapest = [f"at {rate_name(fps)} {_cheapest(study.at(fps))}" for fps in study.rates]
    return f"{text}: {'; '.join(cheapest)}."


def verdict(study: FidelityStudy) -> Verdict:
    """Say which settings pay and hold what they promise, at each rate, by the worst clip."""
    return best_verdict(
        [
            Tried(
                name=row.setting.name,
                where=f"at {rate_name(fps)}",
                work=row.cost,
                time=row.time_ratio if row.time_ratio == row.time_ratio else None,
                promised=row.setting.promised,
                measured=1.0 - row.worst_clip_error,
            )
            for fps in study.rates
            for row in study.at(fps)
            if row.setting.policy != "dense"
        ]
    )


def _cheapest(rows: Sequence[FidelityRow]) -> str:
    similar = [row for row in rows if row.similarity >= SIMILAR]
    if not similar:
        return f"none keeps a mean cosine of {SIMILAR:g}"
    best = min(similar, key=lambda row: row.cost)
    return (
        f"the cheapest with a mean cosine of {SIMILAR:g} or more is {best.setting.name} "
        f"({best.similarity:.3f} at cost {best.cost:.2f})"
    )


def shown_tables(study: FidelityStudy) -> list[TextTable]:
    """Return a table for each rate for the console: its title, its header, its rows."""
    header = ["setting", "cost", "time", "error", "worst clip", "worst frame", "saliency"]
    header += ["promise", "front"]
    return [
        (
            f"At {rate_name(fps)}, means over {counted(len(study.clips), 'clip')}"
            f"{floor_words(study, fps)}",
            header,
            [
                [
                    row.setting.name,
                    f"{row.cost:.3f}",
                    shown_number(row.time_ratio, ".2f"),
                    _error(row.error),
                    _error(row.worst_clip_error),
                    _error(1 - row.worst_frame),
                    shown_number(row.saliency_iou),
                    _promise(row),
                    "*" if row.on_front else "",
                ]
                for row in study.at(fps)
            ],
        )
        for fps in study.rates
    ]


def floor_words(study: FidelityStudy, fps: float, clip: str = ALL) -> str:
    """Say what errors changes have that nobody minds; empty where they were not measured."""
    found = study.floors.get((fps, clip))
    if not found:
        return ""
    shown = ", ".join(f"{name} {_error(error)}" for name, error in found.items())
    return f"; errors without a cacher: {shown}"


def rate_name(fps: float) -> str:
    """Write a frame rate."""
    return f"{fps:g} fps"


def _drawn(study: FidelityStudy) -> tuple[dict[str, Measure], dict[str, str]]:
    """Return the measures and the costs that were measured."""

    def is_measured(name: str) -> bool:
        return any(point[name] == point[name] for point in _points(study.rows))

    return (
        {name: measure for name, measure in MEASURES.items() if is_measured(name)},
        {name: words for name, words in COSTS.items() if is_measured(name)},
    )


def _shown_first(study: FidelityStudy) -> tuple[int, int]:
    """Return the numbers of two settings: the wanted ones, else the last and the first."""
    numbers = {setting: number for number, setting in enumerate(study.settings)}
    last = len(study.settings) - 1
    return numbers.get(_FIRST[0], last), numbers.get(_FIRST[1], 0)


def _lines(study: FidelityStudy, fps: float, clip: str) -> list[Line]:
    return [Line(row.setting.name, row.on_front, _cells(row)) for row in study.at(fps, clip)]


def _cells(row: FidelityRow) -> tuple[str, ...]:
    return (
        f"{row.cost:.3f}",
        shown_number(row.time_ratio, ".2f"),
        shown_number(row.frame_ms, ".1f", " ms"),
        f"{100 * row.dense_share:.0f} %",
        _error(row.error),
        _error(1 - row.similarity_p5),
        _error(1 - row.worst_frame),
        _error(row.worst_clip_error),
        shown_number(row.saliency_iou),
        shown_number(row.saliency_iou_worst),
        _promise(row),
    )


def _error(value: float) -> str:
    return shown_number(value if value != value else max(0.0, value), ".4f")


def _promise(row: FidelityRow) -> str:
    if row.promise_kept is None:
        return "-"
    return f"{'kept' if row.promise_kept else 'missed'}, {counted(row.audits, 'audit')}"


def _page_data(
    study: FidelityStudy, measures: Mapping[str, Measure], costs: Mapping[str, str]
) -> dict[str, Any]:
    """Return what the page's script draws from; clips and rates are in their order."""
    names = [ALL, *study.clips]
    return {
        "all": ALL,
        "rates": study.rates,
        "clips": list(study.clips),
        "settings": [
            {"name": s.name, "policy": s.policy, "family": s.family, "value": s.value}
            for s in study.settings
        ],
        "measures": {name: measure._asdict() for name, measure in measures.items()},
        "costs": costs,
        "points": [[_points(study.at(fps, clip)) for clip in names] for fps in study.rates],
        "fronts": [
            [_fronts(_points(study.at(fps, clip)), measures, costs) for clip in names]
            for fps in study.rates
        ],
        "frames": [[_frames(study, fps, clip) for clip in study.clips] for fps in study.rates],
    }


def _points(rows: Sequence[FidelityRow]) -> list[dict[str, float]]:
    """Return what can be drawn of each setting."""
    return [
        {
            "cost": row.cost,
            "time_ratio": row.time_ratio,
            "error": row.error,
            "error_p5": max(0.0, 1 - row.similarity_p5),
            "error_worst": max(0.0, 1 - row.worst_frame),
            "saliency_iou": row.saliency_iou,
        }
        for row in rows
    ]


def _fronts(
    points: Sequence[Mapping[str, float]],
    measures: Mapping[str, Measure],
    costs: Mapping[str, str],
) -> dict[str, dict[str, list[int]]]:
    """Return for each cost and measure the settings that none beats, cheapest first."""

    def beaten_by_none(cost: str, name: str, is_error: bool) -> list[int]:
        gains = [-point[name] if is_error else point[name] for point in points]
        best = front([point[cost] for point in points], gains)
        return sorted(best, key=lambda number: points[number][cost])

    return {
        cost: {
            name: beaten_by_none(cost, name, measure.is_error) for name, measure in measures.items()
        }
        for cost in costs
    }


def _frames(study: FidelityStudy, fps: float, clip: str) -> list[dict[str, list[float]]]:
    """Return each setting's cost of every frame, and its error from the second on."""
    measured = [study.measured[setting, fps, clip] for setting in study.settings]
    return [
        {
            "costs": [round(cost, 4) for cost in one.costs],
            "errors": [round(max(0.0, 1 - value), 6) for value in one.similarities],
        }
        for one in measured
    ]


PAGE = StudyPage(
    name="fidelity",
    remark="cost, time: fractions of dense. *: no setting is both cheaper and better. What the "
    "errors do to a model's answers was not measured.",
    headline=headline,
    verdict=verdict,
    tables=shown_tables,
    values=_values,
)
