# SPDX-License-Identifier: Apache-2.0
"""Progress bars of long commands, which Ctrl-C ends between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from stc_video.cli.stop import Stop

#: adds a bar, from its title, its unit and its length, and returns the function that moves it on
Bar: TypeAlias = Callable[[str, str, "int | None"], Callable[[], None]]


@contextmanager
def bars(console: Console, stop: Stop) -> Iterator[Bar]:
    """Show progress bars."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(*columns, console=console) as progress:

        def finish() -> None:
            for task in progress.tasks:
                progress.update(task.id, total=task.completed)

        def add(title: str, unit: str, total: int | None) -> Callable[[], None]:
            finish()
            task = progress.add_task(title, total=total, unit=unit)

            def step() -> None:
                progress.advance(task)
                if stop.wanted:
                    raise KeyboardInterrupt

            return step

        yield add
        finish()
