# SPDX-License-Identifier: Apache-2.0
"""`stc calibrate`: measure a tower on videos, for what its streams are to start with."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from stc_video.calibration import Calibration
from stc_video.cli.environment import measured_on
from stc_video.cli.options import REPORT
from stc_video.cli.output import collected_warnings, command_line, show_verdict, text_table
from stc_video.cli.stop import INTERRUPTED, Stop
from stc_video.cli.study import RatesSettings, set_up
from stc_video.config import CacheConfig
from stc_video.report.verdict import Verdict, calibration_verdict

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(RatesSettings):
    """Options of `stc calibrate`."""

    out: Annotated[Path, typer.Option(rich_help_panel=REPORT, help="The file to write.")] = Path(
        "calibration.json"
    )


def calibrate(settings: CalibrationSettings) -> int:
    """Measure what the motion policy should start with on your videos, with your tower.

    Give the file to CacheConfig(calibration=...).
    Exit code: 0 done, 1 a video ended early, 2 bad input, 130 interrupted.
    """
    console = Console(highlight=False)
    settings.rates()  # wrong options should not wait for a model
    out = settings.out
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}")
    stop = Stop()
    try:
        with stop, collected_warnings() as notes:
            calibration, problems = _measure(settings, console, stop)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        return INTERRUPTED
    verdict = _verdict(calibration)
    # Kept with it, for whoever opens the file later.
    facts = {"verdict": verdict.text, "verdict_level": verdict.level}
    replace(calibration, facts={**calibration.facts, **facts}).save(out)
    for note in (*problems, *notes):
        console.print(f"Note: {note}", style="yellow", markup=False)
    console.print(_table(calibration))
    console.print(
        f"{out}: use it as CacheConfig(calibration={str(out)!r}, quality=...). Without audits "
        f"every video had a cosine of {calibration.best_quality:.3f}; above that frames are dense "
        "to hold the quality.",
        soft_wrap=True,
        markup=False,
    )
    show_verdict(console, verdict)
    return 1 if problems else 0


def _measure(
    settings: CalibrationSettings, console: Console, stop: Stop
) -> tuple[Calibration, list[str]]:
    """Encode the clips and try the aims; the calibration, and which clips ended early."""
    from stc_video.studies.fidelity.calibrate import AIMS, calibrate
    from stc_video.studies.fidelity.measure import encode_densely, problems_of

    with ExitStack() as files:
        setup = set_up(settings, settings.rates(), settings.max_frames, console, stop, files)
        on_frame = setup.frames_bar("Encoding densely")
        clips = encode_densely(setup.clips, setup.model, on_frame=on_frame)
        steps = len(AIMS) * sum(clip.frames for clip in clips if clip.frames > 1)
        on_step = setup.bar("Trying aims", "frames", steps)
        calibration = calibrate(clips, setup.model, AIMS, on_step, _facts(settings, setup.model))
        return calibration, problems_of(clips)


def _facts(settings: CalibrationSettings, model: LoadedModel) -> dict[str, str]:
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
        "command": command_line(),
    }


def _verdict(calibration: Calibration) -> Verdict:
    """Judge by the default quality, or by the best one if that is lower."""
    default = CacheConfig().quality
    least = min(default, calibration.best_quality)
    costs = [point.cost for point in calibration.points if point.worst_clip >= least]
    return calibration_verdict(calibration.best_quality, default, min(costs, default=None))


def _table(calibration: Calibration) -> Table:
    header = ["aim", "effort at the start", "tail", "cost", "similarity", "worst clip"]
    rows = [
        [
            f"{point.aim.error:g}",
            f"{point.aim.level:g}",
            "yes" if point.aim.tail else "no",
            f"{point.cost:.3f}",
            f"{point.similarity:.4f}",
            f"{point.worst_clip:.4f}",
        ]
        for point in calibration.points
    ]
    return text_table(header, rows)
