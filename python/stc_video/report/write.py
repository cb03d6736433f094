# SPDX-License-Identifier: Apache-2.0
"""Write a report: one HTML file that needs nothing else, and the same facts as JSON."""

from __future__ import annotations

import base64
import json
import math
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from stc_video.report.page import atomic, finite, write_page
from stc_video.report.pictures import data_url
from stc_video.report.record import SCHEMA_VERSION, FrameRecord, RunRecord
from stc_video.report.summary import headline, summarise
from stc_video.report.tables import answer_cards, detail_tables, tiles, totals_table
from stc_video.report.verdict import run_verdict

#: A report embeds at most this many pictures; of longer runs, those of every n-th frame.
MOST_PICTURES = 800


def to_dict(record: RunRecord) -> dict[str, Any]:
    """Return what `write_json` writes.

    These are the fields of `RunRecord` without pictures, `schema_version`, `headline`, `verdict`
    and `totals`.
    """
    bare = replace(record, frames=tuple(replace(f, picture=b"") for f in record.frames))
    totals = summarise(record)
    out: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "headline": headline(record, totals),
        "verdict": asdict(run_verdict(record, totals)),
        "totals": asdict(totals),
        **asdict(bare),
    }
    for frame, source in zip(out["frames"], record.frames, strict=True):
        del frame["picture"]
        frame["encoded"] = [round(value, 4) for value in source.encoded]
        frame["encoded_fraction"] = source.encoded_fraction
    plain: dict[str, Any] = finite(out)
    return plain


def write_json(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write report.json, whole or not at all: see :func:`atomic`; returns the path."""
    text = json.dumps(to_dict(record), indent=1, allow_nan=False)
    with atomic(Path(path)) as file:
        file.write(text + "\n")
    return Path(path)


def write_html(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write report.html of a run with pictures; otherwise as :func:`write_json`."""
    totals = summarise(record)
    record, thinned = _thin(record)
    answers = answer_cards(record)
    write_page(
        Path(path),
        "report.html.j2",
        styles=["page.css", "report.css"],
        scripts=["common.js", "viewer.js", "charts.js", *(["answers.js"] if answers else [])],
        data=_page_data(record),
        record=record,
        headline=headline(record, totals),
        verdict=run_verdict(record, totals),
        warnings=(*record.warnings, *thinned),
        tiles=tiles(record, totals),
        totals=totals_table(record, totals),
        details=detail_tables(record),
        answers=answers,
    )
    return Path(path)


def _page_data(record: RunRecord) -> dict[str, Any]:
    """Return what the page's scripts draw from."""
    return {
        "grid": record.model.grid,
        "featureGrid": record.model.feature_grid,
        "features": record.model.features,
        "frames": [_page_frame(frame) for frame in record.frames],
    }


def _page_frame(frame: FrameRecord) -> dict[str, Any]:
    levels = bytes(round(255 * value) for value in frame.encoded)
    return {
        "number": frame.number,
        "time": frame.time,
        "kind": frame.kind,
        "reason": frame.reason,
        "cost": frame.cost,
        "changed": frame.changed,
        "encoded": base64.b64encode(levels).decode(),
        "encodedFraction": frame.encoded_fraction,
        "kept": frame.kept,
        "similarity": frame.similarity,
        "similarityWorst": frame.similarity_worst,
        "seconds": dict(frame.seconds),
        "denseSeconds": frame.dense_seconds,
        "picture": data_url(frame.picture),
    }


def _thin(record: RunRecord) -> tuple[RunRecord, list[str]]:
    """Leave pictures out of a report that no browser would open otherwise, and say so."""
    every = math.ceil(len(record.frames) / MOST_PICTURES)
    if every <= 1:
        return record, []
    shown = {thumb.frame for card in answer_cards(record) for thumb in card.thumbnails}
    frames = tuple(
        f if f.index % every == 0 or f.index in shown else replace(f, picture=b"")
        for f in record.frames
    )
    note = f"To keep this file small it has the picture of one frame in {every}; all data is here."
    return replace(record, frames=frames), [note]
