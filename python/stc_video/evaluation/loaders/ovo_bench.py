# SPDX-License-Identifier: Apache-2.0
"""OVO-Bench: ``ovo_bench_new.json``, questions about what was, is, and is about to be seen."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stc_video.evaluation.loaders.rows import (
    RowError,
    Rows,
    a_list,
    broken_query,
    one_of,
    options,
    read_json,
    seconds,
)
from stc_video.evaluation.queries import LETTERS, Query, QuerySet, count_note
from stc_video.evaluation.template import Words, as_text, write_options

BACKWARD = ("EPM", "ASI", "HLD")
REAL_TIME = ("OCR", "ACR", "ATR", "STU", "FPD", "OJR")
FORWARD = ("REC", "SSR", "CRR")
_TASKS = (*BACKWARD, *REAL_TIME, *FORWARD)
#: rows of the published file
_ROWS = {"EPM": 297, "HLD": 186, "ASI": 148, "STU": 178, "OJR": 184, "ATR": 116, "ACR": 109,
         "OCR": 149, "FPD": 101, "REC": 82, "SSR": 42, "CRR": 48}  # fmt: skip

WORDS: Words = MappingProxyType({
    "choice": "{question}\n{options}\nAnswer with the letter of the right option only.",
    "option": "{letter}. {text}",
    "between": "\n",
    "count": "How many times in all have they been seen to {activity} up to now? Answer with a "
    "number.",
    "step": "A tutorial on {tutorial} is shown. Is this step being carried out at this moment: "
    "{step}? Answer with Yes or No only.",
    "enough": "{question}\nDoes the video up to now show enough to answer this question? "
    "Answer with Yes or No only.",
})  # fmt: skip


def load(data: Path, *, words: Words = WORDS) -> QuerySet:
    """Read the file. A forward row is asked again at each of its times, so it is many queries."""
    content, digest = read_json(data)
    entries = a_list(content, data, ("id", "task", "video"))
    rows = Rows()
    queries: list[Query] = []
    for number, entry in enumerate(entries):
        name = str(entry.get("id", f"row {number}")) if isinstance(entry, dict) else f"row {number}"
        with rows.row(f"row {name}") as said:
            queries += queries_of(entry, words)
            continue
        queries.append(broken_query(name, entry, said, task="task"))
    found = Counter(entry.get("task") for entry in entries if isinstance(entry, dict))
    notes = count_note("OVO-Bench", ((task, found[task], _ROWS[task]) for task in _TASKS))
    template = as_text(words)
    return QuerySet("ovo-bench", {data.name: digest}, queries, rows.problems, notes, template)


def queries_of(entry: dict[str, Any], words: Words = WORDS) -> list[Query]:
    """What a row of the file asks: one question, or a forward one at each of its times.

    Raises
    ------
    RowError, KeyError, TypeError
        If the row is broken.
    """
    is_forward = _task(entry) in FORWARD
    return _forward(entry, words) if is_forward else [_choice(entry, words)]


def _task(entry: dict[str, Any]) -> str:
    return one_of("task", entry["task"], _TASKS)


def _end(realtime: Any) -> tuple[float, float]:
    """End of the official clip, in whole seconds, and the moment itself."""
    moment = seconds(realtime)
    return float(math.ceil(moment)), moment


def _choice(entry: dict[str, Any], words: Words) -> Query:
    choices = options(entry["options"])
    gold = entry["gt"]
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise RowError("answer is no option", f"gt must be 0 to {len(choices) - 1}, got {gold!r}")
    question = str(entry["question"])
    time, moment = _end(entry["realtime"])
    return Query(
        key=str(entry["id"]),
        video=str(entry["video"]),
        time=time,
        due=moment,
        question=question,
        prompt=words["choice"].format(question=question, options=write_options(choices, words)),
        task=_task(entry),
        gold=LETTERS[gold],
        choices=choices,
    )


def _forward(entry: dict[str, Any], words: Words) -> list[Query]:
    tests = entry["test_info"]
    if not tests:
        raise RowError("unreadable row", "test_info is empty, so it is asked at no time")
    return [_forward_query(entry, number, test, words) for number, test in enumerate(tests)]


def _forward_query(entry: dict[str, Any], number: int, test: dict[str, Any], words: Words) -> Query:
    task = entry["task"]
    if task == "REC":
        question = words["count"].format(activity=entry["activity"])
        gold = str(int(test["count"]))
        prompt = question
    else:
        gold = ("No", "Yes")[int(test["type"])]
        if task == "SSR":
            question = str(test["step"])
            prompt = words["step"].format(tutorial=entry["tutorial"], step=question)
        else:
            question = str(entry["question"])
            prompt = words["enough"].format(question=question)
    time, moment = _end(test["realtime"])
    return Query(
        key=f"{entry['id']}_{number}",
        video=str(entry["video"]),
        time=time,
        due=moment,
        question=question,
        prompt=prompt,
        task=task,
        gold=gold,
        kind="count" if task == "REC" else "yes_no",
    )
