# SPDX-License-Identifier: Apache-2.0
"""Progress bars of long commands, which Ctrl-C ends between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from stc_video.cli.stop import Stop

__all__ = ["bars"]


@contextmanager
def bars(
    console: Console, stop: Stop
) -> Iterator[Callable[[str, str, int | None], Callable[[], None]]]:
    """Show progress bars; yields the function that adds one and returns what moves it on."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
    )
    with Progress(*columns, console=console) as progress:

        def add(what: str, unit: str, total: int | None) -> Callable[[], None]:
            for task in progress.tasks:
                progress.update(task.id, total=task.completed)
            added = progress.add_task(what, total=total, unit=unit)

            def step() -> None:
                progress.advance(added)
                if stop.wanted:
                    raise KeyboardInterrupt

            return step

        yield add
        for task in progress.tasks:
            progress.update(task.id, total=task.completed)
