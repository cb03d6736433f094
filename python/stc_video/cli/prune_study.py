# SPDX-License-Identifier: Apache-2.0
"""`stc prune-study`: from the options to the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from stc_video.cli.environment import chosen_backends, measured_on
from stc_video.cli.output import collected_warnings
from stc_video.cli.progress import bars
from stc_video.cli.stop import INTERRUPTED, Stop
from stc_video.cli.study import Details, Finished, View, details_of, report_study
from stc_video.cli.study_settings import PruneStudySettings

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.pruning.clips import EncodedClip
    from stc_video.studies.pruning.study import PruneStudy
    from stc_video.video import VideoSource

__all__ = ["study_videos"]

_REMARK = "Which choice is better for a model's answers was not measured."


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
    from stc_video.studies.pruning import page

    settings.chosen_methods()  # wrong options should not wait for a model
    settings.chosen_budgets()
    view = View(
        "prune_study", page.write_study, page.headline, page.verdict, page.shown_tables, _REMARK
    )
    study = report_study(partial(_run, settings), view, out, command)
    if study is None:
        return INTERRUPTED
    return 1 if any(clip.problem for clip in study.clips) else 0


def _run(settings: PruneStudySettings, console: Console, stop: Stop) -> Finished[PruneStudy]:
    """Encode the clips and measure the methods."""
    from stc_kernels import use_backend
    from stc_video.studies.marks import SaliencyMarker
    from stc_video.studies.pruning.clips import expected_frames, open_at_rates
    from stc_video.studies.pruning.study import run_study, steps

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
    details = _details(settings, sources, study.clips, model, backends)
    return Finished(study, details, measured_on(model))


def _encode(
    sources: Sequence[tuple[str, VideoSource]],
    model: LoadedModel,
    marker: SaliencyMarker,
    step: Callable[[], None],
) -> list[EncodedClip]:
    from stc_video.studies.pruning.clips import encode_clip

    return [encode_clip(name, source, model, marker, step) for name, source in sources]


def _details(
    settings: PruneStudySettings,
    sources: Sequence[tuple[str, VideoSource]],
    clips: Sequence[EncodedClip],
    model: LoadedModel,
    backends: dict[str, str],
) -> Details:
    """Return what the report says about how it was run."""
    grids = sorted({clip.grid for clip in clips})
    shown = [
        (name, f"{source.width} x {source.height}, {clip.frames} frames at {settings.fps:g} fps")
        for (name, source), clip in zip(sources, clips, strict=True)
    ]
    tokens = [
        ("tokens of a frame", ", ".join(f"{h} x {w}" for h, w in grids)),
        ("width of a token", str(clips[0].features.shape[2])),
    ]
    return details_of(shown, model, settings.shown(), backends, tokens)
