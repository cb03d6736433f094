# SPDX-License-Identifier: Apache-2.0
"""The frame of the pages of all studies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from stc_video.report.page import write_page
from stc_video.report.verdict import Verdict

#: how a study was run: title -> (name, value) pairs
Details = Mapping[str, Sequence[tuple[str, str]]]
#: title, header and rows
TextTable = tuple[str, list[str], list[list[str]]]


class Study(Protocol):
    """The measurements of a study."""

    @property
    def notes(self) -> Sequence[str]:
        """Notes that the reader must know."""

    @property
    def problems(self) -> Sequence[str]:
        """Clips that ended early, with the reason; also among the notes."""

    @property
    def frame_counts(self) -> Mapping[str, Sequence[int]]:
        """Clip -> number of frames at each rate."""

    @property
    def model_facts(self) -> Sequence[tuple[str, str]]:
        """Facts about the model that only the study knows, as (name, value) pairs."""

    def table(self) -> list[dict[str, object]]:
        """Return the rows of the CSV file."""


StudyT = TypeVar("StudyT", bound=Study)


@dataclass(frozen=True)
class StudyPage(Generic[StudyT]):
    """The page and the console tables of one kind of study.

    Attributes
    ----------
    name
        Of its template, its script and its files.
    remark
        The line below the tables in the console.
    headline
        Sums the study up in a sentence.
    verdict
        Judges it.
    tables
        Returns the tables for the console.
    values
        Returns what the template needs besides; ``data`` is for the script.
    """

    name: str
    remark: str
    headline: Callable[[StudyT], str]
    verdict: Callable[[StudyT], Verdict]
    tables: Callable[[StudyT], Sequence[TextTable]]
    values: Callable[[StudyT], dict[str, Any]]

    def write(
        self,
        study: StudyT,
        path: str | os.PathLike[str],
        *,
        command: str,
        created: str,
        details: Details,
    ) -> Path:
        """Write the page, whole or not at all, with how and when the study was run."""
        write_page(
            Path(path),
            f"{self.name}.html.j2",
            styles=["page.css", "study.css"],
            scripts=["common.js", f"{self.name}.js"],
            headline=self.headline(study),
            verdict=self.verdict(study),
            warnings=study.notes,
            study=study,
            command=command,
            created=created,
            details=details,
            **self.values(study),
        )
        return Path(path)


def shown_number(value: float, form: str = ".3f", unit: str = "") -> str:
    """Format a number; a dash for NaN."""
    return "-" if value != value else f"{value:{form}}{unit}"
