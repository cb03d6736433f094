# SPDX-License-Identifier: Apache-2.0
"""Helpers of the commands that write a report."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from stc_video.addresses import without_password
from stc_video.report.verdict import Verdict

_COLOURS = {"good": "bold green", "mixed": "bold yellow", "bad": "bold red"}


def command_line() -> str:
    """Return the command as it was typed, for the report, without passwords in addresses."""
    return without_password(shlex.join(["stc", *sys.argv[1:]]))


def prepare_folder(out: Path) -> None:
    """Make the folder, so that a long run does not end without a place for its report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out {out}: this is a file, not a folder") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: the folder cannot be written to")


def show_note(console: Console, text: object) -> None:
    """Print what a user should know, but need not act on."""
    console.print(f"Note: {text}", style="yellow", markup=False)


@contextmanager
def warnings_as_notes() -> Iterator[None]:
    """Print this package's warnings as notes on standard error; others stay as they are."""
    with warnings.catch_warnings():
        stock = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if _is_ours(category):
                show_note(Console(stderr=True, highlight=False, soft_wrap=True), message)
            else:
                stock(message, category, *where, **more)

        warnings.showwarning = show
        yield


def _is_ours(category: type[Warning]) -> bool:
    return category.__module__.startswith("stc_")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect this package's warnings for the report instead of printing them over the bar."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for warning in caught:
        if _is_ours(warning.category) and str(warning.message) not in notes:
            notes.append(str(warning.message))


def show_verdict(console: Console, verdict: Verdict) -> None:
    """Print a verdict, on one line and in its colour."""
    style = _COLOURS[verdict.level]
    console.print(f"Verdict: {verdict.text}", style=style, markup=False, soft_wrap=True)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """Make a table for the console; the first column is names, the others are numbers."""
    table = Table(
        title=title or None, title_justify="left", box=None, pad_edge=False, header_style="dim"
    )
    for number, column in enumerate(header):
        # A word that is too long goes on in the next line: a shortened one says too little.
        table.add_column(
            column, justify="right" if number else "left", no_wrap=not number, overflow="fold"
        )
    for row in rows:
        table.add_row(*row)
    return table
