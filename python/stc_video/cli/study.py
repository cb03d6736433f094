# SPDX-License-Identifier: Apache-2.0
"""What `stc prune-study` and `stc fidelity` share: from a study to its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from rich.console import Console

from stc_video.cli.environment import environment, model_facts
from stc_video.cli.output import prepare_folder, show_verdict, text_table
from stc_video.cli.stop import Stop
from stc_video.report.verdict import Verdict

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel

__all__ = ["Details", "Finished", "View", "details_of", "report_study"]

#: what a report says about how it was run: title -> (name, value) pairs
Details = dict[str, list[tuple[str, str]]]


class Study(Protocol):
    """What was measured."""

    @property
    def notes(self) -> Sequence[str]:
        """What the reader must know."""

    def table(self) -> list[dict[str, object]]:
        """Return the rows of the CSV file."""


StudyT = TypeVar("StudyT", bound=Study)


@dataclass(frozen=True)
class Finished(Generic[StudyT]):
    """A study, how it was run, and the columns of the CSV file that say where."""

    study: StudyT
    details: Details
    where: Mapping[str, object]


@dataclass(frozen=True)
class View(Generic[StudyT]):
    """How a kind of study is shown.

    Attributes
    ----------
    name
        Of its files.
    write
        Writes the page.
    headline
        Sums it up in a sentence.
    verdict
        Says what it comes to.
    tables
        Tables for the console: title, header, rows.
    remark
        What stands below them.
    """

    name: str
    write: Callable[..., Path]
    headline: Callable[[StudyT], str]
    verdict: Callable[[StudyT], Verdict]
    tables: Callable[[StudyT], Sequence[tuple[str, list[str], list[list[str]]]]]
    remark: str


def report_study(
    run: Callable[[Console, Stop], Finished[StudyT]],
    view: View[StudyT],
    out: Path,
    command: str,
) -> StudyT | None:
    """Run a study, write its page and its table, and say where they are.

    Parameters
    ----------
    run
        Measures.
    view
        How it is shown.
    out
        Folder for the files; made if missing.
    command
        The command line, for the report.

    Returns
    -------
    Study or None
        None if it was interrupted; then nothing is written.

    Raises
    ------
    ValueError, OSError
        For bad input, before anything is written.
    """
    from stc_video.report.csv_table import write_csv

    console = Console(highlight=False)
    prepare_folder(out)
    stop = Stop()
    try:
        with stop:
            done = run(console, stop)
    except KeyboardInterrupt:
        console.print("Stopped; no report was written.")
        return None
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    page = view.write(
        done.study,
        out / f"{view.name}.html",
        command=command,
        created=created,
        details=done.details,
    )
    rows = [row | dict(done.where) | {"command": command} for row in done.study.table()]
    table = write_csv(rows, out / f"{view.name}.csv")
    _show(done.study, view, console)
    console.print(f"Report: [bold]{page}[/bold] (open in a browser) and {table}", soft_wrap=True)
    show_verdict(console, view.verdict(done.study))
    return done.study


def details_of(
    clips: list[tuple[str, str]],
    model: LoadedModel,
    settings: Mapping[str, object],
    backends: dict[str, str],
    tokens: Sequence[tuple[str, str]] = (),
) -> Details:
    """Return what the report says about how it was run; settings of None are left out."""
    return {
        "Clips": clips,
        "Model": [*model_facts(model), *tokens],
        "Settings": [(name, str(value)) for name, value in settings.items() if value is not None],
        "Versions": list(environment().items()),
        "Backend per operator": list(backends.items()),
    }


def _show(study: StudyT, view: View[StudyT], console: Console) -> None:
    console.print()
    console.print(view.headline(study), style="bold")
    for note in study.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    for title, header, rows in view.tables(study):
        console.print(text_table(header, rows, title))
    console.print(view.remark, style="dim")
