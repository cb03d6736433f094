# SPDX-License-Identifier: Apache-2.0
"""`stc world`: streams with known truth, and questions about them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from stc_video.cli.options import QUESTIONS, REPORT, VIDEO


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Options of `stc world`."""

    streams: Annotated[
        int, typer.Option(rich_help_panel=VIDEO, min=1, help="How many; cameras take turns.")
    ] = 120
    seconds: Annotated[
        str, typer.Option(rich_help_panel=VIDEO, help="Length, or shortest-longest.")
    ] = "10-24"
    cameras: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=VIDEO, help="Names with commas between.", show_default="every one"
        ),
    ] = None
    split: Annotated[
        Literal["train", "tune", "test"],
        typer.Option(rich_help_panel=VIDEO, help="Each has its own seeds and ground."),
    ] = "test"
    seed: Annotated[int, typer.Option(rich_help_panel=VIDEO, min=0, help="Of everything.")] = 0
    questions: Annotated[
        int, typer.Option(rich_help_panel=QUESTIONS, min=1, help="At most, for each stream.")
    ] = 12
    out: Annotated[
        Path, typer.Option(rich_help_panel=REPORT, help="Folder for the videos and the questions.")
    ] = Path("world")


def world(settings: WorldSettings) -> int:
    """Make streams with known truth and questions about them, for `stc eval ovo-bench`.

    Shapes and cards come, move, change and go before real video.

    Exit code: 0 done, 2 bad input.
    """
    from rich.console import Console
    from rich.progress import Progress

    from stc_video.cli.output import prepare_folder
    from stc_video.evaluation.world.cameras import CAMERAS
    from stc_video.evaluation.world.files import eval_command, write_world

    cameras = _cameras(settings.cameras, CAMERAS)
    seconds = _seconds(settings.seconds)
    prepare_folder(settings.out)
    console = Console(highlight=False, soft_wrap=True)
    with Progress(console=console) as bar:
        item = bar.add_task("Filming", total=settings.streams)
        path = write_world(
            settings.out,
            settings.split,
            settings.streams,
            seconds=seconds,
            questions=settings.questions,
            seed=settings.seed,
            cameras=cameras,
            show=lambda done: bar.update(item, completed=done),
        )
    console.print(f"Next: {eval_command(path, settings.out)}", markup=False)
    return 0


def _cameras(text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if text is None:
        return known
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            raise ValueError(f"--cameras must be of {', '.join(known)}; got {name!r}")
    return names


def _seconds(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    low, high = first.strip(), (last or first).strip()
    if not low.isdigit() or not high.isdigit() or not 1 <= int(low) <= int(high):
        raise ValueError(f"--seconds must be a length such as 60 or 10-24, got {text!r}")
    return int(low), int(high)
