# SPDX-License-Identifier: Apache-2.0
"""`stc calibrate`: measure a tower on videos, for the qualities that can be promised for it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from stc_video.calibration import Calibration
from stc_video.cli.environment import cpu_name
from stc_video.cli.output import collected_warnings
from stc_video.cli.progress import bars
from stc_video.cli.settings import CalibrationSettings
from stc_video.cli.stop import Stop

__all__ = ["calibrate_tower"]

_INTERRUPTED = 130


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
        The exit code: 0 done, 130 interrupted; then nothing is written.

    Raises
    ------
    ValueError, OSError
        For bad input.
    """
    console = Console(highlight=False)
    if not out.parent.is_dir():
        raise ValueError(f"--out: there is no folder {out.parent}")
    stop = Stop()
    try:
        with stop, collected_warnings() as notes:
            found = _measure(settings, console, stop, command)
    except KeyboardInterrupt:
        console.print("Stopped; nothing was written.")
        return _INTERRUPTED
    found.save(out)
    for note in notes:
        console.print(f"Note: {note}", style="yellow", markup=False)
    console.print(_table(found))
    console.print(
        f"{out}: CacheConfig(calibration={str(out)!r}, quality=...) promises up to quality "
        f"{found.best_quality:.3f} on videos like these.",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _measure(
    settings: CalibrationSettings, console: Console, stop: Stop, command: str
) -> Calibration:
    import torch

    from stc_video.models.load import load_model
    from stc_video.studies.fidelity import AIMS, calibrate, encode_densely
    from stc_video.video import default_clip

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    paths = settings.videos or (default_clip(),)
    with console.status("Loading the model ..."):
        model = load_model(
            settings.model,
            random_weights=settings.random_weights,
            device=settings.device,
            dtype=settings.dtype,
        )
    gpu = model.device.type == "cuda"
    facts = {
        "model": model.name,
        "geometry": model.description,
        "device": torch.cuda.get_device_name(model.device) if gpu else cpu_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "clips": ", ".join(path.name for path in paths),
        "fps": ", ".join(f"{fps:g}" for fps in settings.fps),
        "command": command,
    }
    with bars(console, stop) as bar:
        encoded = bar("Encoding densely", "frames", None)
        clips = [
            clip
            for fps in settings.fps
            for clip in encode_densely(
                paths, model, fps=fps, max_frames=settings.max_frames, on_frame=encoded
            )
        ]
        steps = len(AIMS) * sum(len(clip.inputs) for clip in clips if len(clip.inputs) > 1)
        return calibrate(clips, model, AIMS, bar("Trying aims", "frames", steps), facts)


def _table(found: Calibration) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("aim", "effort at the start", "cost", "similarity", "worst clip"):
        table.add_column(column, justify="right")
    for point in found.points:
        table.add_row(
            f"{point.aim.error:g}",
            f"{point.aim.level:g}",
            f"{point.cost:.3f}",
            f"{point.similarity:.4f}",
            f"{point.worst_clip:.4f}",
        )
    return table
