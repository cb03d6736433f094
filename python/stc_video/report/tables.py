# SPDX-License-Identifier: Apache-2.0
"""The numbers of a report as text, for the page and for the console."""

from __future__ import annotations

from typing import NamedTuple

from stc_video.report.record import AnswerRecord, PromiseFacts, RunRecord
from stc_video.report.summary import Totals, counted, percent

#: retrieved frames shown with an answer
MOST_THUMBNAILS = 12

_NONE = "-"
_STAGE_NAMES = {
    "decode": "Decode the video",
    "preprocess": "Prepare the pixels",
    "tower": "Vision tower",
    "project": "Projector and pooling",
    "prune": "Prune",
    "prefill": "Prefill of the language model",
}


class Tile(NamedTuple):
    """One number that a reader should see first."""

    value: str
    label: str
    note: str


class Row(NamedTuple):
    """One line of the comparison: what, this run, every frame dense, the ratio."""

    what: str
    run: str
    dense: str
    ratio: str


class Thumbnail(NamedTuple):
    """A retrieved frame: its number in the run, its time, and how much it was retrieved."""

    frame: int
    time: str
    layers: str


class AnswerCard(NamedTuple):
    """A question and its answer as a reader sees them."""

    question: str
    answer: str
    facts: str
    given: str
    thumbnails: list[Thumbnail]


def tiles(record: RunRecord, totals: Totals) -> list[Tile]:
    """Return the four numbers at the top of a report."""
    t = totals
    kinds = f"{t.dense} dense, {t.cached} cached, {t.unchanged} unchanged"
    out = [Tile(percent(t.cost), "of the dense work in the tower", kinds)]
    if t.similarity is not None and t.similarity_worst_frame is not None:
        note = f"measured on {t.measured} of {t.frames}, worst frame {t.similarity_worst_frame:.3f}"
        out.append(Tile(f"{t.similarity:.3f}", "cosine to a dense encode", note))
    kept = f"{t.tokens_kept_per_frame:.4g} of {record.model.features}"
    out.append(Tile(kept, "tokens kept per frame", f"{t.reduction:.3g}x fewer in all"))
    if t.tower_seconds_per_frame is not None:
        dense = t.dense_seconds_per_frame
        note = "dense was not measured" if dense is None else f"dense takes {milliseconds(dense)}"
        value = milliseconds(t.tower_seconds_per_frame)
        out.append(Tile(value, "median tower time per frame", note))
    return out


def totals_table(record: RunRecord, totals: Totals) -> list[Row]:
    """Return the comparison with encoding every frame densely.

    Times of the dense side are the median of the reference times the number of frames.
    """
    t = totals
    rows = [
        Row("Operations of the tower's layers", percent(t.cost), "100 %", percent(t.cost)),
        Row(
            "Patch tokens encoded",
            f"{t.tokens_encoded:,.0f}",
            f"{t.tokens_dense:,}",
            percent(t.tokens_encoded / t.tokens_dense) if t.tokens_dense else _NONE,
        ),
        Row(
            "Tokens for the language model",
            f"{t.tokens_kept:,}",
            f"{t.tokens_before:,}",
            percent(t.tokens_kept / t.tokens_before) if t.tokens_before else _NONE,
        ),
    ]
    tower = t.seconds["tower"]
    if t.dense_seconds_per_frame is None or t.time_ratio is None:
        rows.append(Row("Time in the vision tower", f"{tower:.2f} s", "not measured", _NONE))
    else:
        dense = t.dense_seconds_per_frame * t.frames
        ratio = percent(t.time_ratio)
        rows.append(Row("Time in the vision tower", f"{tower:.2f} s", f"{dense:.2f} s", ratio))
    for stage in ("decode", "preprocess", "project", "prune", "prefill"):
        if t.seconds[stage]:
            name = "Time: " + _STAGE_NAMES[stage].lower()
            dense_side = _NONE if stage in ("prune", "prefill") else "the same"
            rows.append(Row(name, f"{t.seconds[stage]:.2f} s", dense_side, _NONE))
    return rows


def detail_tables(record: RunRecord) -> dict[str, list[tuple[str, str]]]:
    """Return everything else that was recorded: title -> (name, value) pairs."""
    video, model = record.video, record.model
    lasts = "unknown" if video.duration is None else f"{video.duration:.2f} s"
    rate = "unknown" if video.source_fps is None else f"{video.source_fps:.4g} fps"
    return {
        "Video": [
            ("file", video.path),
            ("stored as", f"{video.width} x {video.height}, {video.codec}, {rate}, {lasts}"),
            ("sampled at", f"{video.sampled_fps:g} fps"),
        ],
        "Model": [
            ("weights", model.name),
            ("geometry", model.description),
            ("token grid", _grid(model.grid) + f" + {model.prefix_tokens} prefix tokens"),
            ("tokens to the pruner", _grid(model.feature_grid) + f", {model.feature_width} wide"),
            ("device, type", f"{model.device}, {model.dtype}"),
            ("memory held for reuse", f"{record.state_bytes / 1e6:.1f} MB"),
            ("cache dropped", f"{record.resets} times"),
            ("promise", _promise(record.promise)),
        ],
        "Settings": [(k, _shown(v)) for k, v in record.settings.items() if v is not None],
        "Versions": list(record.environment.items()),
        "Backend per operator": list(record.backends.items()),
    }


def answer_cards(record: RunRecord) -> list[AnswerCard]:
    """Return the questions, their answers, and the frames to show with each."""
    return [_answer_card(answer) for answer in record.answers]


def _answer_card(answer: AnswerRecord) -> AnswerCard:
    first = answer.seconds["first_token"]
    facts = (
        f"at {clock(answer.time)}, {answer.frames} frames seen, {answer.tokens} tokens, "
        f"first after {milliseconds(first)}, all after "
        f"{milliseconds(answer.seconds['retrieve'] + answer.seconds['generate'])}"
    )
    best = sorted(answer.retrieved, key=lambda f: (-f.layers, -f.index))[:MOST_THUMBNAILS]
    shown = sorted(best, key=lambda f: f.index)
    thumbnails = [
        Thumbnail(f.index, clock(f.time), f"in {f.layers} of {answer.layers} layers") for f in shown
    ]
    total = len(answer.retrieved)
    given = f"Given from {total} frames ({answer.context_tokens} tokens with the question)"
    if total > len(shown):
        given += f"; the {len(shown)} retrieved in most layers are shown"
    return AnswerCard(answer.question, answer.answer, facts, given + ".", thumbnails)


def clock(seconds: float) -> str:
    """Write a time in a video as minutes and seconds."""
    minutes, rest = divmod(round(seconds, 1), 60)
    return f"{minutes:02.0f}:{rest:04.1f}"


def milliseconds(seconds: float) -> str:
    """Write a duration with three digits."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _promise(promise: PromiseFacts) -> str:
    if promise.promised is None:
        return "none"
    held = {None: "not audited", True: "held", False: "missed"}[promise.held]
    estimate = "" if promise.estimated is None else f", {promise.estimated:.4f} by the audits"
    audits = counted(promise.audits, "audit")
    return f"cosine {promise.promised:g}: {held}{estimate} ({audits})"


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]}"


def _shown(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
