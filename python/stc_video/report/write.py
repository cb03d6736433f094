# SPDX-License-Identifier: Apache-2.0
"""Write a report: one HTML file that needs nothing else, and the same facts as JSON."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module, resources
from pathlib import Path
from typing import IO, Any

from stc_video.report.record import SCHEMA_VERSION, FrameRecord, RunRecord
from stc_video.report.summary import headline, summarise
from stc_video.report.tables import answer_cards, detail_tables, tiles, totals_table

__all__ = ["MOST_PICTURES", "to_dict", "write_html", "write_json"]

#: A report embeds at most this many pictures; of longer runs, those of every n-th frame.
MOST_PICTURES = 800


def to_dict(record: RunRecord) -> dict[str, Any]:
    """Return what `write_json` writes.

    Parameters
    ----------
    record : RunRecord
        The run.

    Returns
    -------
    dict
        The fields of `RunRecord` without pictures, `schema_version`, `headline` and `totals`.
    """
    bare = replace(record, frames=tuple(replace(f, picture=b"") for f in record.frames))
    totals = summarise(record)
    out: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "headline": headline(record, totals),
        "totals": asdict(totals),
        **asdict(bare),
    }
    for frame, source in zip(out["frames"], record.frames, strict=True):
        del frame["picture"]
        frame["encoded"] = [round(value, 4) for value in source.encoded]
        frame["encoded_fraction"] = source.encoded_fraction
    finite: dict[str, Any] = _finite(out)
    return finite


def write_json(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write report.json, whole or not at all.

    Parameters
    ----------
    record : RunRecord
        The run.
    path : path
        The file; one that is there is replaced in one step.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OSError
        If the file cannot be written; an earlier one is then as it was.
    """
    text = json.dumps(to_dict(record), indent=1, allow_nan=False)
    with _atomic(Path(path)) as file:
        file.write(text + "\n")
    return Path(path)


def write_html(record: RunRecord, path: str | os.PathLike[str]) -> Path:
    """Write report.html, whole or not at all: one file that loads nothing.

    Parameters
    ----------
    record : RunRecord
        The run, with pictures.
    path : path
        The file; one that is there is replaced in one step.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OSError
        If the file cannot be written; an earlier one is then as it was.
    """
    import jinja2

    plotly: Any = import_module("plotly.offline")  # has no types
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    totals = summarise(record)
    record, thinned = _thin(record)
    html = environment.from_string(_asset("report.html.j2")).render(
        record=record,
        headline=headline(record, totals),
        warnings=(*record.warnings, *thinned),
        tiles=tiles(record, totals),
        totals=totals_table(record, totals),
        details=detail_tables(record),
        answers=(answers := answer_cards(record)),
        css=_asset("report.css"),
        scripts=[
            plotly.get_plotlyjs(),
            _asset("viewer.js"),
            _asset("charts.js"),
            *([_asset("answers.js")] if answers else []),
        ],
        data=_for_script(_page_data(record)),
    )
    with _atomic(Path(path)) as file:
        file.write(html)
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
    picture = base64.b64encode(frame.picture).decode()
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
        "picture": f"data:image/webp;base64,{picture}" if picture else None,
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


def _for_script(value: dict[str, Any]) -> str:
    """Write JSON that no text inside can turn into markup."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


@contextmanager
def _atomic(path: Path) -> Iterator[IO[str]]:
    """Open a file beside `path` that takes its place only when everything was written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
