# SPDX-License-Identifier: Apache-2.0
"""ReKV's format: videos with conversations, to which many data sets have been converted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from stc_video.evaluation.loaders.rows import (
    Rows,
    a_list,
    broken_query,
    gold_letter,
    letter_of,
    options,
    read_json,
    seconds,
    without_letter,
)
from stc_video.evaluation.queries import LETTERS, Query, QuerySet
from stc_video.evaluation.template import BEST_OPTION, Words, as_text, write_options

WORDS = BEST_OPTION


def load(data: Path, *, words: Words = WORDS) -> QuerySet:
    """Read the file. Questions without options are asked and written down, not scored."""
    content, digest = read_json(data)
    rows = Rows()
    queries: list[Query] = []
    for number, entry in enumerate(a_list(content, data, ("video_id", "conversations"))):
        is_object = isinstance(entry, dict)
        video = str(entry.get("video_id", f"row {number}")) if is_object else f"row {number}"
        asked = entry.get("conversations") if is_object else None
        for place, fields in enumerate(asked if isinstance(asked, list) and asked else [None]):
            name = f"{video}-{place}"
            with rows.row(name) as said:
                queries.append(_query(name, entry, fields, words))
                continue
            queries.append(broken_query(name, entry, said, video="video_path"))
    notes = []
    if unscored := sum(query.kind == "open" and not query.problem for query in queries):
        notes.append(f"{unscored} questions have no options: asked and written down, not scored")
    return QuerySet("rekv", {data.name: digest}, queries, rows.problems, notes, as_text(words))


def _query(name: str, entry: dict[str, Any], fields: Any, words: Words) -> Query:
    question, answer = str(fields["question"]), fields.get("answer", "")
    time = math.inf if fields.get("end_time") is None else seconds(fields["end_time"])
    choices: tuple[str, ...] = ()
    prompt, gold = question, str(answer)
    if fields.get("choices"):
        choices = tuple(without_letter(o, i) for i, o in enumerate(options(fields["choices"])))
        prompt = words["choice"].format(question=question, options=write_options(choices, words))
        is_letter = str(answer) in LETTERS[: len(choices)] and answer not in fields["choices"]
        gold = (
            gold_letter(answer, choices)
            if is_letter
            else letter_of(answer, list(fields["choices"]))
        )
    return Query(
        key=name,
        video=str(entry.get("video_path") or entry["video_id"]),
        time=time,
        due=None if math.isinf(time) else time,
        question=question,
        prompt=prompt,
        task=str(fields.get("question_type") or "all"),
        gold=gold,
        choices=choices,
        kind="choice" if choices else "open",
    )
