# SPDX-License-Identifier: Apache-2.0
"""EgoSchema: ``questions.json``, and beside it ``subset_answers.json`` with the public answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from stc_video.evaluation.loaders.rows import RowError, Rows, a_list, broken_query, read_json
from stc_video.evaluation.queries import (
    LETTERS,
    DataError,
    Query,
    QuerySet,
    count_note,
)
from stc_video.evaluation.template import BEST_OPTION, Words, as_text, write_options

#: questions with a public answer, and those without
TASK, TASK_HIDDEN = "subset", "hidden"
_OPTIONS = tuple(f"option {number}" for number in range(5))
WORDS = BEST_OPTION


def load(data: Path, *, words: Words = WORDS) -> QuerySet:
    """Read ``questions.json``, or a folder with both files."""
    file = data / "questions.json" if data.is_dir() else data
    content, digest = read_json(file)
    entries = a_list(content, file, ("q_uid", "question"))
    digests, notes = {file.name: digest}, []
    public: dict[str, Any] = {}
    answers = file.with_name("subset_answers.json")
    if answers.is_file():
        public, digests[answers.name] = read_json(answers)
        if not isinstance(public, dict):
            raise DataError(f"{answers} must be an object of q_uid and number of the option")
    else:
        notes.append(f"EgoSchema: there is no {answers.name} beside {file.name}, so that nothing "
                     "can be scored; answers are written for the validation server")  # fmt: skip
    rows, queries = Rows(), []
    for number, entry in enumerate(entries):
        name = str(entry.get("q_uid", f"row {number}")) if isinstance(entry, dict) else str(number)
        with rows.row(name) as said:
            queries.append(_query(entry, public, words))
            continue
        queries.append(broken_query(name, {"video": f"{name}.mp4"}, said))
    scored = sum(query.task == TASK for query in queries)
    notes += count_note("EgoSchema", [("all", len(queries), 5031), ("with answers", scored, 500)])
    return QuerySet("egoschema", digests, queries, rows.problems, notes, as_text(words))


def _query(entry: dict[str, Any], public: dict[str, Any], words: Words) -> Query:
    name = str(entry["q_uid"])
    missing = [field for field in _OPTIONS if field not in entry]
    if missing:
        raise RowError("no options", f"the fields {', '.join(missing)} are missing")
    choices = tuple(str(entry[field]) for field in _OPTIONS)
    gold = ""
    if name in public:
        place = public[name]
        if not isinstance(place, int) or not 0 <= place < len(choices):
            raise RowError("answer is no option", f"the answer must be 0 to 4, got {place!r}")
        gold = LETTERS[place]
    question = str(entry["question"])
    return Query(
        key=name,
        video=f"{name}.mp4",
        time=math.inf,
        question=question,
        prompt=words["choice"].format(question=question, options=write_options(choices, words)),
        task=TASK if gold else TASK_HIDDEN,
        gold=gold,
        choices=choices,
        kind="choice" if gold else "open",
    )
