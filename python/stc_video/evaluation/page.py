# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one page for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stc_video.evaluation.configurations import DENSE
from stc_video.evaluation.plan import find_video
from stc_video.evaluation.queries import LETTERS, Query
from stc_video.evaluation.results import Results
from stc_video.evaluation.scoring import PARSERS, headline_column
from stc_video.report.page import write_page
from stc_video.report.pictures import data_url, webp
from stc_video.report.verdict import Verdict
from stc_video.video import VideoError, open_video

#: wrong answers that are shown, and frames of each
_SHOWN, _FRAMES = 12, 6
_PICTURE = 216
#: what is kept of a dense model's accuracy for the verdicts
_GOOD, _MIXED = 0.99, 0.97


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _score(configuration: dict[str, Any], column: str, parser: str = "official") -> float | None:
    found: float | None = next(
        s["value"] for s in configuration["scores"][parser] if s["column"] == column
    )
    return found


def headline(results: Results) -> str:
    """Sum it up in a sentence."""
    data = results.data
    main, column = data["configurations"][0], headline_column(data["benchmark"])
    text = (
        f"{data['benchmark']}: {_percent(_score(main, column))} % ({column}) by {_in_words(main)}"
    )
    kept = main.get("against_dense", {}).get("official")
    if kept and kept["retention"] is not None:
        text += f", {_percent(kept['retention'])} % of the dense model's"
    return f"{text}, {data['asked']:,} of {data['of_benchmark']:,} questions"


def _in_words(configuration: dict[str, Any]) -> str:
    """A configuration's name; one made of policy, pruner and memory with what each means."""
    name: str = configuration["name"]
    cache, *rest = name.split(" ", 2)
    if len(rest) < 2 or cache.partition("-")[0] != configuration["settings"]["policy"]:
        return name
    frames = "all frames dense" if cache == "none" else f"policy {cache}"
    tokens = "all tokens" if rest[0] == "none" else f"pruner {rest[0]}"
    return f"{frames}, {tokens}, memory {rest[1]}"


def verdict(results: Results) -> Verdict:
    """Say whether the accuracy is kept, as far as this run can tell."""
    data = results.data
    main = data["configurations"][0]
    if data["protocol"]["model"]["random"]:
        return Verdict("mixed", "the weights are random: the scores say only that everything runs.")
    if main["name"] == DENSE:
        return Verdict("mixed", "this is the dense configuration, with which others are compared.")
    if "against_dense" not in main:
        return Verdict("mixed", "without --controls nothing says how much accuracy is kept.")
    kept = main["against_dense"]["official"]
    beaten = [
        c["name"]
        for c in data["configurations"][1:]
        if c["name"] != DENSE and (_value(c) or 0.0) >= (_value(main) or 0.0)
    ]
    behind = f" A control is no worse: {', '.join(beaten)}." if beaten else ""
    if kept["low"] is None:
        return Verdict("mixed", f"too few videos or right answers for an interval.{behind}")
    text = (
        f"{_percent(kept['retention'])} % of the dense accuracy is kept (95 % interval "
        f"{_percent(kept['low'])} to {_percent(kept['high'])}).{behind}"
    )
    if kept["low"] >= _GOOD and not beaten:
        return Verdict("good", text)
    return Verdict("bad" if kept["high"] < _MIXED else "mixed", text)


def _value(configuration: dict[str, Any]) -> float | None:
    kept = configuration.get("against_dense", {}).get("official")
    return None if kept is None else kept["score"]


def score_rows(results: Results, parser: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the table of scores, in percent."""
    configurations = results.data["configurations"]
    # Columns without a question would be dashes in every row.
    columns = [s["column"] for s in configurations[0]["scores"][parser] if s["value"] is not None]
    rows = []
    for one in configurations:
        values = {s["column"]: s["value"] for s in one["scores"][parser]}
        rows.append([one["name"], *(_percent(values[column]) for column in columns)])
    return ["configuration (policy pruner memory)", *columns], rows


def _kept_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    header = [
        "configuration",
        "retention %",
        "95 % interval",
        "gained",
        "lost",
        "retention, strict",
    ]
    rows = []
    for one in results.data["configurations"]:
        if "against_dense" not in one:
            continue
        kept, strict = (one["against_dense"][parser] for parser in PARSERS)
        between = (
            "-" if kept["low"] is None else f"{_percent(kept['low'])} to {_percent(kept['high'])}"
        )
        rows.append([one["name"], _percent(kept["retention"]), between, str(kept["gained"]),
                     str(kept["lost"]), _percent(strict["retention"])])  # fmt: skip
    return header, rows


def _group_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    """Accuracy by task and folder: a row each, a column for each configuration."""
    configurations = results.data["configurations"]
    rows = []
    for number, group in enumerate(configurations[0]["groups"]):
        cells = []
        for one in configurations:
            part = one["groups"][number]
            between = "" if part["low"] is None else (
                f" ({_percent(part['low'])} to {_percent(part['high'])})"
            )  # fmt: skip
            cells.append(f"{_percent(part['accuracy'])}{between}")
        rows.append([group["name"], str(group["total"]), *cells])
    return ["part", "questions", *(one["name"] for one in configurations)], rows


def _cost_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    names = {"work": "tower work %", "encode_ms_per_frame": "tower ms per frame",
             "prefill_ms_per_frame": "prefill ms per frame", "answer_ms": "answer ms",
             "tokens_per_frame": "tokens per frame",
             "context_tokens": "tokens per answer"}  # fmt: skip
    rows = []
    for one in results.data["configurations"]:
        cost = one["cost"]
        cells = [_percent(cost[k]) if k == "work" else _number(cost[k]) for k in names]
        rows.append([one["name"], *cells])
    return ["configuration", *names.values()], rows


def _problem_rows(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = [
        [one["name"], p["kind"], str(p["count"]), ", ".join(p["examples"])]
        for one in results.data["configurations"]
        for p in one["problems"]
    ]
    rows += [["(the file)", p["kind"], p["where"], p["what"]] for p in results.data["row_problems"]]
    return ["configuration", "what", "questions", "which"], rows


def write_report(results: Results, path: Path, *, videos: Path, command: str, created: str) -> Path:
    """Write the page, whole or not at all.

    Parameters
    ----------
    results
        What is shown.
    path
        The file.
    videos
        Folder of the videos, for pictures of the frames that wrong answers were given from.
    command, created
        The command line, and when it ran.
    """
    tables = {f"Scores in percent, {parser} parser": score_rows(results, parser)
              for parser in PARSERS}  # fmt: skip
    tables |= {
        "Kept of the dense model's accuracy": _kept_rows(results),
        "By task and by folder of the videos, in percent, with 95 % intervals": _group_rows(
            results
        ),
        "What it costs": _cost_rows(results),
        "What went wrong; all of it is in the scores": _problem_rows(results),
    }
    data = results.data
    write_page(
        path,
        "evaluation.html.j2",
        styles=["page.css", "report.css", "study.css"],
        scripts=["common.js", "evaluation.js"],
        data=_chart_data(results),
        headline=headline(results),
        verdict=verdict(results),
        warnings=_warnings(results),
        benchmark=data["benchmark"],
        tables={title: table for title, table in tables.items() if table[1]},
        wrong=_wrong_answers(results, videos),
        command=command,
        details=_details(data),
        created=created,
    )
    return path


def _warnings(results: Results) -> list[str]:
    data = results.data
    made = list(data["notes"])
    if data["asked"] < data["questions"]:
        made.append(
            f"only {data['asked']} of {data['questions']} questions have an answer by every "
            "configuration so far; the scores are over these"
        )
    if data["protocol"].get("left_open"):
        made.append(f"the preset leaves open: {data['protocol']['left_open']}")
    return made


def _details(data: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    protocol = {k: v for k, v in data["protocol"].items() if k != "configurations"}
    flat: list[tuple[str, str]] = []
    for name, value in protocol.items():
        pairs = value.items() if isinstance(value, dict) else [("", value)]
        flat += [(f"{name} {key}".strip(), str(item)) for key, item in pairs]
    return {"Protocol": flat, "Versions": [(k, str(v)) for k, v in data["made_with"].items()]}


def _chart_data(results: Results) -> dict[str, Any]:
    data = results.data
    column = headline_column(data["benchmark"])
    tasks = {query.task for query in results.queries}
    rows = []
    for one in data["configurations"]:
        values = {s["column"]: s["value"] for s in one["scores"]["official"]}
        rows.append({
            "name": one["name"], "score": values[column],
            "encode": one["cost"]["encode_ms_per_frame"], "tokens": one["cost"]["context_tokens"],
            "work": None if one["cost"]["work"] is None else 100 * one["cost"]["work"],
            "tasks": {name: value for name, value in values.items() if name in tasks},
        })  # fmt: skip
    return {"column": column, "rows": rows}


def _wrong_answers(results: Results, videos: Path) -> list[dict[str, Any]]:
    """Describe some wrong answers of the first configuration: first those that dense has right."""
    name = results.data["configurations"][0]["name"]
    ours, dense = results.counts[name].verdicts, results.counts.get(DENSE)
    wrong = [query for query in results.queries if ours[query.key] is False and not query.problem]
    if dense is not None:
        wrong.sort(key=lambda query: dense.verdicts[query.key] is not True)
    shown = []
    for query in wrong[:_SHOWN]:
        entry = results.entries[name][query.key]
        frames = entry.get("retrieved") or []
        best = sorted(sorted(frames, key=lambda frame: -frame[2])[:_FRAMES])
        shown.append({
            "question": query.question, "options": _options(query), "gold": query.gold,
            "answer": entry["answer"], "problem": entry["problem"],
            "where": f"{query.key}, {query.task}, {query.video}",
            "was_right": dense is not None and dense.verdicts[query.key] is True,
            "frames": _pictures(videos, query.video, [frame[1] for frame in best]),
        })  # fmt: skip
    return shown


def _options(query: Query) -> list[str]:
    return [f"{a}. {b}" for a, b in zip(LETTERS, query.choices, strict=False)]


def _pictures(folder: Path, video: str, times: Sequence[float]) -> list[tuple[str, str | None]]:
    """Frames as (time, picture); without a picture where the video cannot be read any more."""
    from PIL import Image

    path = find_video(folder, video)
    made: list[tuple[str, str | None]] = []
    for time in times:
        picture = None
        if path is not None:
            try:
                with open_video(path, start=time, max_frames=1) as source:
                    for frame in source:
                        picture = data_url(webp(Image.fromarray(frame.image), _PICTURE))
            except VideoError:
                picture = None
        made.append((f"{time:.1f} s", picture))
    return made
