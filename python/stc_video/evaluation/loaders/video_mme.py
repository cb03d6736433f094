# SPDX-License-Identifier: Apache-2.0
"""Video-MME: the published template as JSON, with or without subtitles."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stc_video.evaluation.loaders.rows import (
    Rows,
    a_list,
    broken_query,
    gold_letter,
    one_of,
    options,
    read_json,
    without_letter,
)
from stc_video.evaluation.queries import DataError, Query, QuerySet, count_note
from stc_video.evaluation.template import Words, as_text, write_options

DURATIONS = ("short", "medium", "long")
WORDS: Words = MappingProxyType({
    "choice": "{subtitles}Select the best answer to this question about the video. Respond with "
    "only the letter of the right option.\n{question}\n{options}\nThe best answer is:",
    "option": "{letter}. {text}",
    "between": "\n",
    "subtitles": "These are the subtitles of the video:\n{text}\n",
})  # fmt: skip
_TIMES = re.compile(r"\d+:\d\d:\d\d[,.]\d+\s*-->")


def load(data: Path, *, words: Words = WORDS, subtitles: Path | None = None) -> QuerySet:
    """Read the file.

    Parameters
    ----------
    data
        A list of videos with their questions, or of questions, each with its video.
    words
        Around a question.
    subtitles
        Folder of ``{videoID}.srt``; None to ask without. A video without a file has none.
    """
    if subtitles is not None and not subtitles.is_dir():
        raise DataError(f"--subtitles {subtitles} is not a folder")
    content, digest = read_json(data)
    entries = a_list(content, data, ("video_id",))
    rows = Rows()
    queries: list[Query] = []
    without: set[str] = set()
    for number, entry in enumerate(entries):
        listed = entry.get("questions", [entry]) if isinstance(entry, dict) else [entry]
        for place, fields in enumerate(listed if isinstance(listed, list) else [listed]):
            is_object = isinstance(fields, dict)
            name = str(fields.get("question_id", f"{number}-{place}")) if is_object else str(number)
            with rows.row(name) as said:
                queries.append(_query(name, entry, fields, words, subtitles, without))
                continue
            queries.append(broken_query(name, entry, said, video="video_id", task="duration"))
    notes = count_note("Video-MME", [("questions", len(queries), 2700)])
    if without:
        notes.append(f"Video-MME: {len(without)} videos have no subtitles and are asked without")
    template = as_text(words)
    return QuerySet("video-mme", {data.name: digest}, queries, rows.problems, notes, template)


def _query(
    name: str,
    entry: dict[str, Any],
    fields: dict[str, Any],
    words: Words,
    subtitles: Path | None,
    without: set[str],
) -> Query:
    video = str(entry.get("videoID") or entry["video_id"])
    choices = tuple(without_letter(o, i) for i, o in enumerate(options(fields["options"])))
    question = str(fields["question"])
    spoken = ""
    if subtitles is not None:
        file = subtitles / f"{video}.srt"
        if file.is_file():
            spoken = words["subtitles"].format(
                text=_spoken(file.read_text("utf-8", errors="replace"))
            )
        else:
            without.add(video)
    return Query(
        key=name,
        video=f"{video}.mp4",
        time=math.inf,
        question=question,
        prompt=words["choice"].format(
            subtitles=spoken, question=question, options=write_options(choices, words)
        ),
        task=one_of("duration", entry["duration"], DURATIONS),
        gold=gold_letter(fields["answer"], choices),
        choices=choices,
    )


def _spoken(text: str) -> str:
    """Lines of subtitles without numbers, times and marks."""
    lines = []
    for line in text.splitlines():
        line = re.sub(r"<[^>]*>|\{[^}]*\}", "", line).strip()
        if line and not line.isdigit() and not _TIMES.match(line):
            lines.append(line)
    return "\n".join(lines)
