# SPDX-License-Identifier: Apache-2.0
"""Reading JSON and CSV files row by row; a bad row becomes a problem, a bad file an error."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stc_video.evaluation.queries import LETTERS, DataError, Problem, Query, file_digest


class RowError(ValueError):
    """What is wrong with a row: its kind in a few words, and a sentence."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def read_json(path: Path) -> tuple[Any, str]:
    """Read a JSON file; returns its content and its SHA-256."""
    _check_there(path)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig")), file_digest(path)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error


def read_csv(path: Path, columns: Sequence[str]) -> tuple[list[dict[str, str]], str]:
    """Read a CSV file that must have these columns; returns its rows and its SHA-256."""
    _check_there(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                found = ", ".join(reader.fieldnames or ()) or "none"
                raise DataError(f"{path} lacks the columns {', '.join(missing)}; it has {found}")
            return list(reader), file_digest(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not valid CSV: {error}") from error


def _check_there(path: Path) -> None:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise DataError(f"--data {path} {what}")


def a_list(value: Any, path: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """Check that a file is a list of objects of which the first has these fields."""
    wanted = f"a list of objects with {', '.join(fields)}"
    if not isinstance(value, list) or not value:
        raise DataError(f"{path} must be {wanted}, got {_kind(value)}")
    if not isinstance(value[0], dict) or any(name not in value[0] for name in fields):
        raise DataError(f"{path} must be {wanted}; its first entry is {_kind(value[0])}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return f"an object with {', '.join(list(value)[:8]) or 'no fields'}"
    return f"an empty {type(value).__name__}" if not value else f"a {type(value).__name__}"


class Rows:
    """Collects what is wrong with rows.

    Attributes
    ----------
    problems
        So far.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @contextmanager
    def row(self, where: str) -> Iterator[list[str]]:
        """Guard the reading of a row; yields a list that gets the sentence if it is bad."""
        said: list[str] = []
        try:
            yield said
        except RowError as error:
            self.add(error.kind, where, str(error), said)
        except KeyError as error:
            kind = "no options" if error.args[0] in ("options", "candidates") else "unreadable row"
            self.add(kind, where, f"the field {error} is missing", said)
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            self.add("unreadable row", where, str(error), said)

    def add(self, kind: str, where: str, what: str, said: list[str] | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, where, what))
        if said is not None:
            said.append(f"{kind}: {what}")


def broken_query(
    key: str, entry: Any, said: list[str], *, video: str = "video", task: str | None = None
) -> Query:
    """Make the query of a row that cannot be asked; it is counted, and answered wrongly.

    ``video`` and ``task`` are names of fields.
    """
    fields = entry if isinstance(entry, dict) else {}
    return Query(
        key=key,
        video=str(fields.get(video, "")),
        time=0.0,
        question=str(fields.get("question", "")),
        prompt="",
        task=str(fields.get(task, "unknown")) if task else "unknown",
        problem=said[0],
    )


def seconds(value: Any) -> float:
    """Read a time: a number of seconds, or ``HH:MM:SS`` or ``MM:SS``."""
    if isinstance(value, str) and ":" in value:
        parts = [float(part) for part in value.strip().split(":")]
        return sum(part * 60.0**power for power, part in enumerate(reversed(parts)))
    time = float(value)
    if not math.isfinite(time) or time < 0:
        raise RowError("bad time", f"a time must be 0 or more seconds, got {value!r}")
    return time


def one_of(what: str, value: str, allowed: Sequence[str]) -> str:
    """Check a task."""
    if value not in allowed:
        raise RowError(f"unknown {what}", f"{what} {value!r} is none of {', '.join(allowed)}")
    return value


def options(value: Any) -> tuple[str, ...]:
    """Check a list of options."""
    if not isinstance(value, (list, tuple)) or not value:
        raise RowError("no options", f"options must be a list, got {value!r}")
    if not 2 <= len(value) <= len(LETTERS):
        raise RowError("no options", f"there must be 2 to {len(LETTERS)} options, got {len(value)}")
    return tuple(str(item) for item in value)


def without_letter(option: str, position: int) -> str:
    """Take ``A. `` or ``(A) `` off the option at this position, if it is there."""
    letter, text = LETTERS[position], option.strip()
    for mark in (f"{letter}.", f"({letter})", f"{letter})", f"{letter}:"):
        if text.startswith(mark):
            return text[len(mark) :].strip()
    return text


def letter_of(answer: Any, choices: Sequence[str]) -> str:
    """Letter of the option that is the answer's text."""
    if answer not in choices:
        raise RowError("answer is no option", f"answer {answer!r} is none of the options")
    return LETTERS[list(choices).index(answer)]


def gold_letter(answer: Any, choices: Sequence[str]) -> str:
    """Check an answer that is a letter."""
    letter = str(answer).strip()
    if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
        raise RowError("answer is no option", f"answer {answer!r} is not the letter of an option")
    return letter
