# SPDX-License-Identifier: Apache-2.0
"""MLVU: the files ``1_plotQA.json`` to ``9_summary.json`` of the dev set."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from stc_video.evaluation.loaders.rows import (
    Rows,
    a_list,
    broken_query,
    letter_of,
    options,
    read_json,
)
from stc_video.evaluation.queries import DataError, Query, QuerySet, count_note
from stc_video.evaluation.template import BEST_OPTION, Words, as_text, write_options

#: tasks with options -> rows of the published dev set
TASKS = {"plotQA": 539, "findNeedle": 355, "ego": 352, "count": 206, "order": 259,
         "anomaly_reco": 200, "topic_reasoning": 264}  # fmt: skip
#: names in `question_type` of some releases
_OTHER_NAMES = {"needle": "findNeedle", "findneedle": "findNeedle", "plotqa": "plotQA"}
#: what is not scored here: answers that another model has to judge
_OPEN = ("sub_scene", "subPlot", "summary")
_FOLDERS = {"plotQA": "1_plotQA", "findNeedle": "2_needle", "ego": "3_ego", "count": "4_count",
            "order": "5_order", "anomaly_reco": "6_anomaly_reco",
            "topic_reasoning": "7_topic_reasoning"}  # fmt: skip

WORDS = BEST_OPTION


def load(data: Path, *, words: Words = WORDS) -> QuerySet:
    """Read one of the files, or all of a folder."""
    files = sorted(data.glob("*.json")) if data.is_dir() else [data]
    if not files:
        raise DataError(f"--data {data}: the folder has no .json file")
    rows = Rows()
    queries: list[Query] = []
    digests, skipped = {}, 0
    for file in files:
        content, digests[file.name] = read_json(file)
        for number, entry in enumerate(a_list(content, file, ("video", "question"))):
            name = f"{file.stem}-{number}"
            if isinstance(entry, dict) and entry.get("question_type") in _OPEN:
                skipped += 1
                continue
            with rows.row(name) as said:
                queries.append(_query(name, entry, rows, words))
                continue
            queries.append(broken_query(name, entry, said, task="question_type"))
    found = Counter(query.task for query in queries)
    notes = count_note("MLVU", ((task, found[task], count) for task, count in TASKS.items()))
    if skipped:
        notes.append(f"MLVU: {skipped} open-ended questions are left out, which no rule can score")
    return QuerySet("mlvu", digests, queries, rows.problems, notes, as_text(words))


def _query(name: str, entry: dict[str, Any], rows: Rows, words: Words) -> Query:
    choices = options(entry["candidates"])
    task = _OTHER_NAMES.get(str(entry["question_type"]), str(entry["question_type"]))
    if task not in TASKS:
        rows.add("unknown task", name, f"task {task!r} is asked and counted under this name")
    question, video = str(entry["question"]), str(entry["video"])
    return Query(
        key=name,
        # Videos lie in a folder for each task.
        video=f"{_FOLDERS[task]}/{video}" if task in _FOLDERS and "/" not in video else video,
        time=math.inf,
        question=question,
        prompt=words["choice"].format(question=question, options=write_options(choices, words)),
        task=task,
        gold=letter_of(entry["answer"], choices),
        choices=choices,
    )
