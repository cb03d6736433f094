# SPDX-License-Identifier: Apache-2.0
"""The page of a prune study: tables, charts, and the masks over the frames."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from stc_video.report.pictures import data_url
from stc_video.report.summary import counted
from stc_video.report.verdict import Compared, Verdict, prune_verdict
from stc_video.studies.metrics import pareto_front
from stc_video.studies.page import StudyPage, TextTable, shown_number
from stc_video.studies.pruning.clips import EncodedClip
from stc_video.studies.pruning.methods import CONTROLS, EVERYTHING
from stc_video.studies.pruning.study import ALL, MEASURES, PruneStudy, Row

#: The budget whose choice is shown first is the one nearest to this, in percent.
_FIRST_BUDGET = 25.0
#: What the console and the verdict go by.
_CHOSEN = ("explained_mean", "moved_kept", "salient_kept")


class Line(NamedTuple):
    """One method in a table."""

    method: str
    summary: str
    cells: tuple[str, ...]


COLUMNS = (
    "tokens kept",
    "latency median",
    "p99",
    "explained mean",
    "5th percentile",
    "kept that moved",
    "moved kept",
    "kept that are salient",
    "salient kept",
    "overlap with ideal",
)


def _values(study: PruneStudy) -> dict[str, Any]:
    """Return what the template needs."""
    return {
        "data": _page_data(study),
        "first_budget": _first_budget(study),
        "budget_name": budget_name,
        "measures": MEASURES,
        "columns": COLUMNS,
        "tables": {budget_name(b): _lines(study, b) for b in study.budgets},
        "base": _lines(study, 100.0)[0],
    }


def headline(study: PruneStudy) -> str:
    """Say in one sentence what was compared, and which method is ahead where."""
    budget = _first_budget(study)
    rows = [row for row in study.at(budget) if row.method != EVERYTHING.name]

    def ahead(measure: str) -> str | None:
        best = max((r for r in rows if r.measure(measure) == r.measure(measure)),
                   key=lambda row: row.measure(measure), default=None)  # fmt: skip
        return None if best is None else f"{best.method} ({best.measure(measure):.2f})"

    frames = sum(clip.frames for clip in study.clips)
    text = (
        f"{counted(len(study.methods), 'method')} at {counted(len(study.budgets), 'budget')} on "
        f"{counted(len(study.clips), 'clip')}, {counted(frames, 'frame')}"
    )
    leaders = [
        f"{what} {name}"
        for what, name in (
            ("the dropped tokens are explained best by", ahead("explained_mean")),
            ("most of what moved is kept by", ahead("moved_kept")),
            ("most of what is salient by", ahead("salient_kept")),
        )
        if name is not None
    ]
    return f"{text}: at {budget_name(budget)}, {'; '.join(leaders)}." if leaders else f"{text}."


def verdict(study: PruneStudy) -> Verdict:
    """Say whether a method does better than controls that do not look at the picture."""
    budget = _first_budget(study)
    compared = {
        row.method: Compared(
            row.method,
            {MEASURES[name]: row.measure(name) for name in _CHOSEN},
            row.latency_median,
        )
        for row in study.at(budget)
        if row.method != EVERYTHING.name
    }
    controls = [compared.pop(name) for name in CONTROLS if name in compared]
    return prune_verdict(f"at {budget_name(budget)}", list(compared.values()), controls)


def shown_tables(study: PruneStudy) -> list[TextTable]:
    """Return a table for the console: its title, its header, the rows at one budget."""
    budget = _first_budget(study)
    header = ["method", "tokens", "latency", *(MEASURES[name] for name in _CHOSEN)]
    rows = [
        [
            row.method,
            f"{row.kept:.4g}",
            f"{row.latency_median:.2f} ms",
            *(shown_number(row.measure(name)) for name in _CHOSEN),
        ]
        for row in study.at(budget)
    ]
    return [(f"At {budget_name(budget)} of the tokens", header, rows)]


def budget_name(budget: float) -> str:
    """Write a budget."""
    return f"{budget:g} %"


def _first_budget(study: PruneStudy) -> float:
    return min(study.budgets, key=lambda budget: abs(budget - _FIRST_BUDGET))


def _lines(study: PruneStudy, budget: float) -> list[Line]:
    summaries = {method.name: method.summary for method in (*study.methods, EVERYTHING)}
    return [Line(row.method, summaries[row.method], _cells(row)) for row in study.at(budget)]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.kept:.4g}"
        + (f" ({row.kept_min}-{row.kept_max})" if row.kept_min < row.kept_max else ""),
        f"{row.latency_median:.2f} ms",
        f"{row.latency_p99:.2f} ms",
        *(shown_number(row.measure(name)) for name in MEASURES),
    )


def _page_data(study: PruneStudy) -> dict[str, Any]:
    """Return what the page's script draws from; lists over budgets are in their order."""
    names = [ALL, *(clip.name for clip in study.clips)]
    return {
        "all": ALL,
        "measures": MEASURES,
        "methods": [
            {"name": m.name, "summary": m.summary, "wholeClip": m.whole_clip} for m in study.methods
        ],
        "budgets": study.budgets,
        "rows": [asdict(row) for row in study.rows],
        "fronts": {
            name: [_fronts(study.at(budget, name)) for budget in study.budgets] for name in names
        },
        "clips": [_page_clip(study, clip) for clip in study.clips],
    }


def _fronts(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return for each measure the methods to which none is both faster and better."""
    rows = [row for row in rows if row.method != EVERYTHING.name]
    costs = [row.latency_median for row in rows]
    return {
        measure: [
            rows[i].method for i in pareto_front(costs, [row.measure(measure) for row in rows])
        ]
        for measure in MEASURES
    }


def _page_clip(study: PruneStudy, clip: EncodedClip) -> dict[str, Any]:
    return {
        "name": clip.name,
        "grid": clip.grid,
        "times": clip.times,
        "pictures": [data_url(picture) for picture in clip.pictures],
        "moved": _bits(clip.moved),
        "salient": _bits(clip.salient),
        "keep": [
            {
                method.name: _bits(study.keeps[method.name, budget, clip.name])
                for method in study.methods
            }
            for budget in study.budgets
        ],
    }


def _bits(masks: Tensor) -> list[str]:
    """Write each row of a mask as base64, the first place in the lowest bit of the first byte."""
    packed = np.packbits(masks.cpu().numpy(), axis=1, bitorder="little")
    return [base64.b64encode(row.tobytes()).decode() for row in packed]


PAGE = StudyPage(
    name="prune_study",
    remark="Which choice is better for a model's answers was not measured.",
    headline=headline,
    verdict=verdict,
    tables=shown_tables,
    values=_values,
)
