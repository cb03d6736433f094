# SPDX-License-Identifier: Apache-2.0
"""The questions of a benchmark in one form, whatever file they come from."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

LETTERS = "ABCDEFGH"


class DataError(ValueError):
    """A benchmark's file is missing, or not in the format that it should be in."""


@dataclass(frozen=True)
class Proactive:
    """A question that the model answers when it thinks that the time has come.

    Attributes
    ----------
    probe
        Is asked first, every second; a "yes" means that the time has come.
    first, last
        Seconds of the first and of the last probe.
    due
        When it should answer.
    """

    probe: str
    first: float
    last: float
    due: float


@dataclass(frozen=True)
class Query:
    """One question about a video at a time.

    Attributes
    ----------
    key
        Name, unique in the benchmark.
    video
        Path below the folder of videos.
    time
        Seconds since the beginning; frames up to this time are seen. Infinite for the end.
    question
        What is asked, without options.
    prompt
        What the model is given.
    task
        One of the benchmark's tasks.
    gold
        The right answer: a letter, a number, "Yes" or "No", or a text. Empty if it is not public.
    choices
        The options, without letters; empty if there are none.
    kind
        How it is answered: "choice", "count", "yes_no", "proactive" or "open" (not scored).
    start
        Seconds that are left out at the beginning of the video, in the clip protocol.
    due
        Seconds at which the benchmark says the moment is, at most ``time``; None if it is the end.
    proactive
        For the kind of that name.
    problem
        Why it cannot be asked; empty if it can. It counts as answered wrongly.
    """

    key: str
    video: str
    time: float
    question: str
    prompt: str
    task: str
    gold: str = ""
    choices: tuple[str, ...] = ()
    kind: str = "choice"
    start: float = 0.0
    due: float | None = None
    proactive: Proactive | None = None
    problem: str = ""


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a row or a video.

    Attributes
    ----------
    kind
        In a few words, the same for all such rows.
    where
        The row or the video.
    what
        In a sentence.
    """

    kind: str
    where: str
    what: str


@dataclass
class QuerySet:
    """The questions of a benchmark.

    Attributes
    ----------
    benchmark
        Its name.
    files
        File name -> SHA-256, of what was read.
    queries
        All of them, those that cannot be asked included.
    problems
        What is wrong with rows.
    notes
        What a reader of the scores must know, such as a count that is not the published one.
    template
        The words around a question, for the record.
    """

    benchmark: str
    files: dict[str, str]
    queries: list[Query]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    template: str = ""

    def __post_init__(self) -> None:
        """Refuse two questions of one name, of which one would be lost."""
        if not self.queries:
            raise DataError(f"{self.benchmark}: there is no question in {', '.join(self.files)}")
        key, count = Counter(query.key for query in self.queries).most_common(1)[0]
        if count > 1:
            raise DataError(f"{self.benchmark}: {count} rows have the name {key!r}, must be unique")

    @property
    def videos(self) -> list[str]:
        """The videos in the order of their names."""
        return sorted({query.video for query in self.queries})


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def count_note(benchmark: str, counts: Iterable[tuple[str, int, int]]) -> list[str]:
    """Say which parts have another number of rows than the published file (name, found, known)."""
    different = [f"{name} {found} (published {known})" for name, found, known in counts
                 if found != known]  # fmt: skip
    if not different:
        return []
    return [f"{benchmark}: not the published number of questions, so perhaps another version of "
            f"the file, or a part of it: {', '.join(different)}"]  # fmt: skip
