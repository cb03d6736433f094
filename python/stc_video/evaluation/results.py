# SPDX-License-Identifier: Apache-2.0
"""From the files of answers to everything that a report says."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stc_video.evaluation.answers import read_answers
from stc_video.evaluation.configurations import DENSE
from stc_video.evaluation.queries import DataError, Query, QuerySet
from stc_video.evaluation.scoring import PARSERS, Counts, compare, count, groups, scores
from stc_video.evaluation.scoring.table import Given

SCHEMA_VERSION = 1
_EXAMPLES = 5


@dataclass(frozen=True)
class Results:
    """What came out.

    Attributes
    ----------
    data
        Everything, as JSON has it.
    queries
        Those that every configuration has answered.
    entries
        Their lines: configuration -> question -> line.
    counts
        What is right by the official rules, by configuration.
    """

    data: dict[str, Any]
    queries: list[Query]
    entries: dict[str, dict[str, dict[str, Any]]]
    counts: dict[str, Counts]


def gather(
    questions: QuerySet,
    queries: Sequence[Query],
    files: Sequence[Path],
    made_with: Mapping[str, Any],
) -> Results:
    """Read files of answers and score them.

    Parameters
    ----------
    questions
        All of the benchmark.
    queries
        Those that are to be asked.
    files
        Of one run or of its shards.
    made_with
        Versions and machine, for the record.

    Raises
    ------
    DataError
        If files were written under different protocols, or hold a question twice.
    """
    protocol, lines = _read(files)
    names = [entry["name"] for entry in protocol["configurations"]]
    entries: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    costs: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in names}
    for line in lines:
        if line["kind"] == "pass":
            costs[line["configuration"]][line["video"]] = line  # the last, if one was done again
        elif line["key"] in entries[line["configuration"]]:
            raise DataError(f"{line['key']} has two answers by {line['configuration']}")
        else:
            entries[line["configuration"]][line["key"]] = line
    asked = [query for query in queries if all(query.key in entries[name] for name in names)]
    counts = {
        parser: {name: _count(questions.benchmark, asked, entries[name], parser) for name in names}
        for parser in PARSERS
    }
    configurations = [
        _configuration(questions, settings, counts, costs, entries, asked)
        for settings in protocol["configurations"]
    ]
    data = {
        "schema_version": SCHEMA_VERSION,
        "benchmark": questions.benchmark,
        "questions": len(queries),
        "asked": len(asked),
        "of_benchmark": len(questions.queries),
        "protocol": protocol,
        "made_with": dict(made_with),
        "notes": questions.notes,
        "row_problems": [asdict(problem) for problem in questions.problems],
        "configurations": configurations,
    }
    return Results(data, asked, entries, counts["official"])


def _configuration(
    questions: QuerySet,
    settings: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, Counts]],
    costs: Mapping[str, Mapping[str, dict[str, Any]]],
    entries: Mapping[str, Mapping[str, dict[str, Any]]],
    asked: Sequence[Query],
) -> dict[str, Any]:
    """What one configuration came to."""
    name, benchmark = settings["name"], questions.benchmark
    found = [entries[name][query.key] for query in asked]
    made: dict[str, Any] = {"settings": settings, "name": name}
    made["scores"] = {
        parser: [asdict(score) for score in scores(benchmark, counts[parser][name])]
        for parser in PARSERS
    }
    if name != DENSE and DENSE in entries:
        made["against_dense"] = {
            parser: asdict(compare(benchmark, counts[parser][name], counts[parser][DENSE]))
            for parser in PARSERS
        }
    made["groups"] = [asdict(group) for group in groups(counts["official"][name])]
    made["cost"] = _cost(list(costs[name].values()), found)
    made["problems"] = _problems(questions, found)
    return made


def _read(files: Sequence[Path]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    protocol: dict[str, Any] | None = None
    lines: list[dict[str, Any]] = []
    for file in files:
        found, more = read_answers(file)
        if found is None:
            continue
        if protocol is not None and found != protocol:
            raise DataError(f"{file} was written under another protocol than {files[0]}")
        protocol = found
        lines += more
    if protocol is None:
        raise DataError("there are no answers to report on")
    return protocol, lines


def _count(
    benchmark: str, queries: Sequence[Query], entries: Mapping[str, dict[str, Any]], parser: str
) -> Counts:
    answers = {key: Given(entry["answer"], entry["time"]) for key, entry in entries.items()}
    return count(benchmark, queries, answers, parser)


def _cost(
    passes: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Means over frames and over answers; None where there were none."""
    frames = sum(line["frames"] for line in passes)
    seconds: dict[str, float] = defaultdict(float)
    for line in passes:
        for stage, spent in line["seconds"].items():
            seconds[stage] += spent
    contexts = [entry["context_tokens"] for entry in answers if entry.get("context_tokens")]
    each = {f"{stage}_ms_per_frame": _per(1000 * seconds[stage], frames) for stage in
            ("decode", "encode", "prune", "prefill")}  # fmt: skip
    return {
        "frames": frames,
        "work": _per(sum(line["work"] * line["frames"] for line in passes), frames),
        "tokens_per_frame": _per(sum(line["tokens_kept"] for line in passes), frames),
        **each,
        "answer_ms": _per(1000 * (seconds["retrieve"] + seconds["generate"]), len(contexts)),
        "context_tokens": _per(sum(contexts), len(contexts)),
    }


def _per(total: float, count: int) -> float | None:
    return total / count if count else None


def _problems(questions: QuerySet, entries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What went wrong, by kind, with the names of some questions; all of it is in the scores."""
    proactive = {query.key for query in questions.queries if query.kind == "proactive"}
    where: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        if entry["problem"]:
            where[entry["problem"].partition(":")[0]].append(entry["key"])
        elif entry["answer"] == "":
            where["empty answer"].append(entry["key"])
        if entry["note"] and entry["key"] not in proactive:
            where["asked after the end of the video"].append(entry["key"])
    number = Counter({kind: len(keys) for kind, keys in where.items()})
    return [{"kind": kind, "count": many, "examples": where[kind][:_EXAMPLES]}
            for kind, many in number.most_common()]  # fmt: skip
