# SPDX-License-Identifier: Apache-2.0
"""`stc prune-study`: from the options to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from stc_video.cli.environment import chosen_backends, cpu_name, environment
from stc_video.cli.output import collected_warnings, prepare_folder
from stc_video.cli.progress import bars
from stc_video.cli.settings import StudySettings
from stc_video.cli.stop import Stop

if TYPE_CHECKING:
    from stc_video.models.load import LoadedModel
    from stc_video.studies.clips import EncodedClip
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.prune_study import PruneStudy
    from stc_video.video import VideoSource

__all__ = ["study_videos"]

_INTERRUPTED = 130


def study_videos(settings: StudySettings, out: Path, command: str) -> int:
    """Compare the pruning methods on some videos, write the report, and say where it is.

    Parameters
    ----------
    settings : StudySettings
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
    settings: StudySettings, console: Console, stop: Stop
) -> tuple[PruneStudy, dict[str, list[tuple[str, str]]], dict[str, object]]:
    """Encode the clips and measure the methods; the study, its details, where it ran."""
    import torch

    from stc_kernels import use_backend
    from stc_video.models.load import load_model
    from stc_video.studies.clips import open_clips
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.prune_study import run_study, steps
    from stc_video.video import default_clip

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    paths = settings.videos or (default_clip(),)
    methods, budgets = settings.chosen_methods(), settings.chosen_budgets()
    with (
        collected_warnings() as notes,
        ExitStack() as files,
        use_backend(settings.backend) if settings.backend else nullcontext(),
    ):
        sources = open_clips(paths, fps=settings.fps, max_frames=settings.max_frames)
        for _, source in sources:
            files.callback(source.close)
        with console.status("Loading the model ..."):
            model = load_model(
                settings.model,
                random_weights=settings.random_weights,
                device=settings.device,
                dtype=settings.dtype,
            )
            backends = chosen_backends(model.device.type, settings.backend)
            default = settings.model is None and settings.random_weights is None
            marker = SaliencyMarker(model.tower if default else None)
        expected = [source.expected_frames for _, source in sources]
        frames = None if None in expected else sum(count or 0 for count in expected)
        with bars(console, stop) as bar:
            clips = _encode(sources, model, marker, bar("Encoding", "frames", frames))
            count = steps(len(clips), len(methods), len(set(budgets)))
            pruning = bar("Pruning", "choices", count)
            study = run_study(clips, methods, budgets, repeats=settings.repeats, on_step=pruning)
    study = study.with_notes([*([model.notice] if model.notice else []), *notes])
    return study, _details(settings, sources, study.clips, model, backends), _where(model)


def _encode(
    sources: Sequence[tuple[str, VideoSource]],
    model: LoadedModel,
    marker: SaliencyMarker,
    step: Callable[[], None],
) -> list[EncodedClip]:
    from stc_video.studies.clips import encode_clip

    return [encode_clip(name, source, model, marker, step) for name, source in sources]


def _details(
    settings: StudySettings,
    sources: Sequence[tuple[str, VideoSource]],
    clips: Sequence[EncodedClip],
    model: LoadedModel,
    backends: dict[str, str],
) -> dict[str, list[tuple[str, str]]]:
    """Return what the report says about how it was run: title -> (name, value) pairs."""
    import torch

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
            ("weights", model.name),
            ("geometry", model.description),
            ("tokens of a frame", ", ".join(f"{h} x {w}" for h, w in grids)),
            ("width of a token", str(clips[0].features.shape[2])),
            ("device, type", f"{model.device}, {str(model.dtype).removeprefix('torch.')}"),
            ("threads", str(torch.get_num_threads())),
        ],
        "Settings": [(k, str(v)) for k, v in settings.shown().items() if v is not None],
        "Versions": list(environment().items()),
        "Backend per operator": list(backends.items()),
    }


def _where(model: LoadedModel) -> dict[str, object]:
    """Return the columns that say with what and on what machine a row was measured."""
    import torch

    import stc_kernels

    device = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else cpu_name()
    return {
        "model": model.name,
        "device": device,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stc_kernels": stc_kernels.__version__,
    }


def _close(study: PruneStudy, console: Console) -> None:
    """Print the table of one budget."""
    from stc_video.studies.prune_page import headline, shown_table

    console.print()
    console.print(headline(study), style="bold")
    for note in study.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    title, header, rows = shown_table(study)
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in header:
        table.add_column(
            column, justify="right" if table.columns else "left", no_wrap=not table.columns
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print("Which choice is better for a model's answers was not measured.", style="dim")
