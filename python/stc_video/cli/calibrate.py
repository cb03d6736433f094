# SPDX-License-Identifier: Apache-2.0
"""`stc calibrate`: measure a tower on videos, for what its streams are to start with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from stc_video.calibration import Calibration
from stc_video.cli.environment import measured_on
from stc_video.cli.output import collected_warnings, show_verdict, text_table
from stc_video.cli.progress import bars
from stc_video.cli.stop import INTERRUPTED, Stop
from stc_video.cli.study_settings import CalibrationSettings
from stc_video.config import CacheConfig
from stc_video.report.verdict import Verdict, calibration_verdict

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel

__all__ = ["calibrate_tower"]


def calibrate_tower(settings: CalibrationSettings, out: Path, command: str) -> int:
    """Try every aim of the ``motion`` policy on some videos and write what it gave.

    Parameters
    ----------
    settings : CalibrationSettings
        The options.
    out : Path
        The file to write; written whole, at the end, or not at all.
    command : str
        The command line, kept in the file.

    Returns
    -------
    int
        The exit code: 0 done, 1 a video ended early, 130 interrupted; then nothing is written.

    Raises
    ------
    ValueError, OSError
        For bad input.
    """
    console = Console(highlight=False)
    settings.rates()  # wrong options should not wait for a model
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}")
    stop = Stop()
    try:
        with stop, collected_warnings() as notes:
            found, problems = _measure(settings, console, stop, command)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    verdict = _verdict(found)
    # Kept with it, for who opens the file later.
    facts = {"verdict": verdict.text, "verdict_level": verdict.level}
    replace(found, facts={**found.facts, **facts}).save(out)
    for note in (*problems, *notes):
        console.print(f"Note: {note}", style="yellow", markup=False)
    console.print(_table(found))
    console.print(
        f"{out}: use it as CacheConfig(calibration={str(out)!r}, quality=...). Without audits "
        f"every video had a cosine of {found.best_quality:.3f}; above that frames are dense "
        "to hold the quality.",
        soft_wrap=True,
        markup=False,
    )
    show_verdict(console, verdict)
    return 1 if problems else 0


def _measure(
    settings: CalibrationSettings, console: Console, stop: Stop, command: str
) -> tuple[Calibration, list[str]]:
    """Encode the clips and try the aims; the calibration, and which clips ended early."""
    from stc_video.studies.fidelity.calibrate import AIMS, calibrate
    from stc_video.studies.fidelity.measure import encode_densely, problems_of
    from stc_video.studies.pruning.clips import expected_frames, open_at_rates

    rates = settings.rates()
    with ExitStack() as files:
        opened = open_at_rates(settings.paths(), rates, max_frames=settings.max_frames, files=files)
        frames = expected_frames(chain.from_iterable(opened.values()))
        with console.status("Loading the model ..."):
            model = settings.load()
        with bars(console, stop) as bar:
            on_frame = bar("Encoding densely", "frames", frames)
            clips = encode_densely(opened, model, on_frame=on_frame)
            steps = len(AIMS) * sum(clip.frames for clip in clips if clip.frames > 1)
            trying = bar("Trying aims", "frames", steps)
            found = calibrate(clips, model, AIMS, trying, _facts(settings, model, command))
    return found, problems_of(clips)


def _facts(settings: CalibrationSettings, model: LoadedModel, command: str) -> dict[str, str]:
    """Return what is kept with a calibration."""
    from stc_video.video.location import locate

    here = measured_on(model)
    return {
        "model": model.name,
        "geometry": model.description,
        "device": str(here["device"]),
        "dtype": str(here["dtype"]),
        "clips": ", ".join(locate(path).name for path in settings.paths()),
        "fps": ", ".join(f"{fps:g}" for fps in settings.rates()),
        "command": command,
    }


def _verdict(found: Calibration) -> Verdict:
    """Judge by the quality that is asked for by default, or the best one."""
    wanted = CacheConfig().quality
    least = min(wanted, found.best_quality)
    costs = [point.cost for point in found.points if point.worst_clip >= least]
    return calibration_verdict(found.best_quality, wanted, min(costs, default=None))


def _table(found: Calibration) -> Table:
    header = ["aim", "effort at the start", "cost", "similarity", "worst clip"]
    rows = [
        [
            f"{point.aim.error:g}",
            f"{point.aim.level:g}",
            f"{point.cost:.3f}",
            f"{point.similarity:.4f}",
            f"{point.worst_clip:.4f}",
        ]
        for point in found.points
    ]
    return text_table(header, rows)
