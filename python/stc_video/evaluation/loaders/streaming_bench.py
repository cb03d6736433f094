# SPDX-License-Identifier: Apache-2.0
"""StreamingBench: ``questions_*.json`` of the repository, or the CSV files of the hub."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from stc_video.evaluation.loaders.rows import (
    RowError,
    Rows,
    a_list,
    broken_query,
    gold_letter,
    options,
    read_csv,
    read_json,
    seconds,
    without_letter,
)
from stc_video.evaluation.queries import (
    DataError,
    Proactive,
    Query,
    QuerySet,
    count_note,
)
from stc_video.evaluation.template import Words, as_text, write_options

REAL_TIME = (
    "Object Recognition",
    "Causal Reasoning",
    "Clips Summarize",
    "Attribute Recognition",
    "Event Understanding",
    "Text-Rich Understanding",
    "Prospective Reasoning",
    "Spatial Understanding",
    "Action Recognition",
    "Counting",
)
OMNI = (
    "Emotion Recognition",
    "Scene Understanding",
    "Source Discrimination",
    "Multimodal Alignment",
    "Misleading Context Understanding",
    "Anomaly Context Understanding",
)
SEQUENTIAL, PROACTIVE = "Sequential Question Answering", "Proactive Output"
_TASKS = (*REAL_TIME, *OMNI, SEQUENTIAL, PROACTIVE)
#: the CSV files call three tasks otherwise
_OTHER_NAMES = {f"{what} Perception": f"{what} Recognition" for what in
                ("Object", "Attribute", "Action")}  # fmt: skip
_COLUMNS = ("question_id", "task_type", "question", "time_stamp")
#: after the last moment at which the answer is due it is asked for this many seconds more
_PATIENCE = 4

WORDS: Words = MappingProxyType({
    "choice": "Question: {question}\nOptions:\n{options}\nThe best option is:",
    "option": "{letter}. {text}",
    "between": "\n",
    "earlier": "Earlier questions about this video, and their answers:\n{earlier}\n",
    "turn": "Question: {question}\nOptions:\n{options}\nAnswer: {answer}",
    "probe": '{question}\nIs it the right time to output "{output}"? Answer with yes or no only.',
    "say": "{question}\nThe time has come. The answer is:",
})  # fmt: skip


class _Row(NamedTuple):
    name: str
    video: str
    fields: dict[str, Any]


def load(data: Path, *, words: Words = WORDS, context_seconds: float | None = None) -> QuerySet:
    """Read one file of the benchmark.

    Parameters
    ----------
    data
        A JSON or CSV file.
    words
        Around a question.
    context_seconds
        How much of the video before a question is seen; None for all of it.
    """
    rows = Rows()
    if data.suffix.lower() == ".csv":
        table, digest = read_csv(data, _COLUMNS)
        queries = from_table(table, rows, words, context_seconds)
    else:
        content, digest = read_json(data)
        queries = _queries(_json_rows(content, data), rows, words, context_seconds)
    notes = []
    tasks = [query.task for query in queries]
    if any(task in REAL_TIME for task in tasks):
        notes += count_note("StreamingBench", [("real-time", len(tasks), 2500)])
    if any(task in OMNI for task in tasks):
        notes.append("StreamingBench: the questions of the omni part are asked without sound")
    template = as_text(words)
    return QuerySet("streamingbench", {data.name: digest}, queries, rows.problems, notes, template)


def from_table(
    table: Iterable[Mapping[str, Any]],
    rows: Rows,
    words: Words = WORDS,
    context_seconds: float | None = None,
) -> list[Query]:
    """Turn rows of the CSV files into questions, one each; what is wrong goes to ``rows``."""
    return _queries(_csv_rows(table), rows, words, context_seconds)


def _queries(
    entries: Iterable[_Row], rows: Rows, words: Words, context_seconds: float | None
) -> list[Query]:
    queries, earlier = [], defaultdict[str, list[str]](list)
    for row in entries:
        with rows.row(row.name) as said:
            queries.append(_query(row, words, context_seconds, earlier[row.video], rows))
            continue
        fields = row.fields | {"video": row.video}
        queries.append(broken_query(row.name, fields, said, task="task_type"))
    return queries


def _json_rows(content: Any, path: Path) -> Iterator[_Row]:
    # The sequential part has a list per video.
    if isinstance(content, list) and content and isinstance(content[0], list):
        content = [entry for video in content for entry in video]
    numbers: dict[str, int] = {}
    for number, entry in enumerate(a_list(content, path, ("questions", "video_path"))):
        if not isinstance(entry, dict) or not isinstance(entry.get("questions"), list):
            raise DataError(f"{path}: entry {number} must be an object with a list of questions")
        video = str(entry.get("video_path", "")).removeprefix("./").removeprefix("videos/")
        for fields in entry["questions"]:
            numbers[video] = place = numbers.get(video, 0) + 1
            is_object = isinstance(fields, dict)
            yield _Row(f"{Path(video).stem}_{place}", video, fields if is_object else {})


def _csv_rows(table: Iterable[Mapping[str, Any]]) -> Iterator[_Row]:
    for fields in table:
        name = fields["question_id"]
        folder, found, rest = name.rpartition("_sample_")
        video = f"{folder}/sample_{rest.partition('_')[0]}/video.mp4" if found else ""
        values: dict[str, Any] = dict(fields)
        if fields.get("options"):
            try:
                values["options"] = ast.literal_eval(fields["options"])
            except (ValueError, SyntaxError):
                values["options"] = fields["options"]
        yield _Row(name, video, values)


def _query(row: _Row, words: Words, context: float | None, earlier: list[str], rows: Rows) -> Query:
    fields = row.fields
    if not row.video:
        raise RowError("unreadable row", f"the name {row.name!r} does not tell the video")
    task = _OTHER_NAMES.get(fields["task_type"], fields["task_type"])
    if task not in _TASKS:
        rows.add("unknown task", row.name, f"task {task!r} is asked and counted under this name")
    time = seconds(fields["time_stamp"])
    if fields.get("ground_truth_time_stamp"):
        return _proactive(row, task, time, words)
    choices = tuple(without_letter(o, i) for i, o in enumerate(options(fields["options"])))
    question, gold = str(fields["question"]), gold_letter(fields["answer"], choices)
    written = write_options(choices, words)
    prompt = words["choice"].format(question=question, options=written)
    if task == SEQUENTIAL:
        if earlier:
            prompt = words["earlier"].format(earlier="\n".join(earlier)) + prompt
        earlier.append(words["turn"].format(question=question, options=written, answer=gold))
    return Query(
        key=row.name,
        video=row.video,
        time=time,
        due=time,
        question=question,
        prompt=prompt,
        task=task,
        gold=gold,
        choices=choices,
        start=0.0 if context is None else max(0.0, time - context),
    )


def _proactive(row: _Row, task: str, time: float, words: Words) -> Query:
    fields = row.fields
    due, question = seconds(fields["ground_truth_time_stamp"]), str(fields["question"])
    output, last = str(fields["ground_truth_output"]), due + _PATIENCE
    if last < time + 1:
        raise RowError("bad time", f"the answer is due at {due:g} s, before {time:g} s")
    probe = words["probe"].format(question=question, output=output)
    return Query(
        key=row.name,
        video=row.video,
        time=last,
        due=due,
        question=question,
        prompt=words["say"].format(question=question),
        task=task,
        gold=output,
        kind="proactive",
        proactive=Proactive(probe, time + 1, last, due),
    )
