# SPDX-License-Identifier: Apache-2.0
"""`stc prune-study`: from the options to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stc_video.cli.environment import (
    chosen_backends,
    environment,
    measured_on,
    model_facts,
)
from stc_video.cli.output import collected_warnings, prepare_folder, text_table
from stc_video.cli.progress import bars
from stc_video.cli.stop import Stop
from stc_video.cli.study_settings import PruneStudySettings

if TYPE_CHECKING:
    from stc_video.models.load import LoadedModel
    from stc_video.studies.clips import EncodedClip
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.prune_study import PruneStudy
    from stc_video.video import VideoSource

__all__ = ["study_videos"]

_INTERRUPTED = 130


def study_videos(settings: PruneStudySettings, out: Path, command: str) -> int:
    """Compare the pruning methods on some videos, write the report, and say where it is.

    Parameters
    ----------
    settings : PruneStudySettings
        The options.
    out : Path
        Folder for prune_study.html and prune_study.csv; made if missing.
    command : str
        The command line, for the report.

    Returns
    -------
    int
        The exit code: 0 done, 1 a video ended early, 130 interrupted; then nothing is written.

    Raises
    ------
    ValueError, OSError
        For bad input, before anything is written.
    """
    from stc_video.studies.prune_page import write_study
    from stc_video.studies.table import write_csv

    console = Console(highlight=False)
    settings.chosen_methods()  # wrong options should not wait for a model
    settings.chosen_budgets()
    prepare_folder(out)
    stop = Stop()
    try:
        with stop:
            study, details, where = _run(settings, console, stop)
    except KeyboardInterrupt:
        console.print("Stopped; no report was written.")
        return _INTERRUPTED
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    page = write_study(
        study, out / "prune_study.html", command=command, created=created, details=details
    )
    rows = [row | where | {"command": command} for row in study.table()]
    table = write_csv(rows, out / "prune_study.csv")
    _close(study, console)
    console.print(f"Report: [bold]{page}[/bold] (open in a browser) and {table}", soft_wrap=True)
    return 1 if any(clip.problem for clip in study.clips) else 0


def _run(
    settings: PruneStudySettings, console: Console, stop: Stop
) -> tuple[PruneStudy, dict[str, list[tuple[str, str]]], dict[str, object]]:
    """Encode the clips and measure the methods; the study, its details, where it ran."""
    from stc_kernels import use_backend
    from stc_video.studies.clips import expected_frames, open_at_rates
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.prune_study import run_study, steps

    methods, budgets = settings.chosen_methods(), settings.chosen_budgets()
    with (
        collected_warnings() as notes,
        ExitStack() as files,
        use_backend(settings.backend) if settings.backend else nullcontext(),
    ):
        [sources] = open_at_rates(
            settings.paths(), [settings.fps], max_frames=settings.max_frames, files=files
        ).values()
        with console.status("Loading the model ..."):
            model = settings.load()
            backends = chosen_backends(model.device.type, settings.backend)
            marker = SaliencyMarker(model.tower if settings.is_default_tower else None)
        frames = expected_frames(sources)
        with bars(console, stop) as bar:
            clips = _encode(sources, model, marker, bar("Encoding", "frames", frames))
            count = steps(len(clips), len(methods), len(set(budgets)))
            pruning = bar("Pruning", "choices", count)
            study = run_study(clips, methods, budgets, repeats=settings.repeats, on_step=pruning)
    study = study.with_notes([*([model.notice] if model.notice else []), *notes])
    return study, _details(settings, sources, study.clips, model, backends), measured_on(model)


def _encode(
    sources: Sequence[tuple[str, VideoSource]],
    model: LoadedModel,
    marker: SaliencyMarker,
    step: Callable[[], None],
) -> list[EncodedClip]:
    from stc_video.studies.clips import encode_clip

    return [encode_clip(name, source, model, marker, step) for name, source in sources]


def _details(
    settings: PruneStudySettings,
    sources: Sequence[tuple[str, VideoSource]],
    clips: Sequence[EncodedClip],
    model: LoadedModel,
    backends: dict[str, str],
) -> dict[str, list[tuple[str, str]]]:
    """Return what the report says about how it was run: title -> (name, value) pairs."""
    grids = sorted({clip.grid for clip in clips})
    return {
        "Clips": [
            (
                name,
                f"{source.width} x {source.height}, {clip.frames} frames at {settings.fps:g} fps",
            )
            for (name, source), clip in zip(sources, clips, strict=True)
        ],
        "Model": [
            *model_facts(model),
            ("tokens of a frame", ", ".join(f"{h} x {w}" for h, w in grids)),
            ("width of a token", str(clips[0].features.shape[2])),
        ],
        "Settings": [(k, str(v)) for k, v in settings.shown().items() if v is not None],
        "Versions": list(environment().items()),
        "Backend per operator": list(backends.items()),
    }


def _close(study: PruneStudy, console: Console) -> None:
    """Print the table of one budget."""
    from stc_video.studies.prune_page import headline, shown_table

    console.print()
    console.print(headline(study), style="bold")
    for note in study.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    title, header, rows = shown_table(study)
    console.print(text_table(header, rows, title))
    console.print("Which choice is better for a model's answers was not measured.", style="dim")
