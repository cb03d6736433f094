# SPDX-License-Identifier: Apache-2.0
"""The options of `stc calibrate`, `stc prune-study` and `stc fidelity`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stc_video.cli.options import (
    CACHE,
    PRUNE,
    REPORT,
    BackendOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    FpsOption,
    ModelOption,
    MostFramesOption,
    OutFolderOption,
    RandomWeightsOption,
    RatesOption,
    SeveralFramesOption,
    ThreadsOption,
    VideosArgument,
)
from stc_video.cli.output import command_line

__all__ = ["calibrate", "fidelity", "prune_study"]

_RATES = ("2,5",)


def calibrate(
    videos: VideosArgument = None,
    fps: RatesOption = None,
    max_frames: SeveralFramesOption = 40,
    model: ModelOption = None,
    random_weights: RandomWeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    threads: ThreadsOption = None,
    out: Annotated[Path, typer.Option(rich_help_panel=REPORT, help="The file to write.")] = Path(
        "calibration.json"
    ),
    debug: DebugOption = False,
) -> None:
    """Measure what the motion policy should start with on your videos, with your tower.

    Give the file to CacheConfig(calibration=...).
    Exit code: 0 done, 1 a video ended early, 2 bad input, 130 interrupted.
    """
    from stc_video.cli.calibrate import calibrate_tower
    from stc_video.cli.study_settings import CalibrationSettings

    settings = CalibrationSettings(
        videos=tuple(videos or ()),
        fps=tuple(fps or _RATES),
        max_frames=max_frames,
        model=model,
        random_weights=random_weights,
        device=device,
        dtype=dtype.value,
        threads=threads,
    )
    raise typer.Exit(calibrate_tower(settings, out, command_line()))


def prune_study(
    videos: VideosArgument = None,
    methods: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=PRUNE, help="Names with commas between.", show_default="every one"
        ),
    ] = None,
    budgets: Annotated[
        str,
        typer.Option(rich_help_panel=PRUNE, help="Percent of the tokens, with commas between."),
    ] = "50,25,10,5",
    fps: FpsOption = 2.0,
    max_frames: MostFramesOption = 32,
    repeats: Annotated[
        int,
        typer.Option(
            rich_help_panel=REPORT, min=1, help="How often each frame is pruned for its latency."
        ),
    ] = 3,
    model: ModelOption = None,
    random_weights: RandomWeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    out: OutFolderOption = Path("out"),
    debug: DebugOption = False,
) -> None:
    """Compare every pruning method at equal numbers of tokens on your videos.

    No language model runs: it says what each method keeps, not what that does to answers.
    Writes prune_study.html and prune_study.csv.
    Exit code: 0 done, 1 a video ended early (the report says why), 2 bad input, 130 interrupted.
    """
    from stc_video.cli.prune_study import study_videos
    from stc_video.cli.study_settings import PruneStudySettings

    settings = PruneStudySettings(
        videos=tuple(videos or ()),
        methods=methods,
        budgets=budgets,
        fps=fps,
        max_frames=max_frames,
        repeats=repeats,
        model=model,
        random_weights=random_weights,
        device=device,
        dtype=dtype.value,
        backend=None if backend is None else backend.value,
        threads=threads,
    )
    raise typer.Exit(study_videos(settings, out, command_line()))


def fidelity(
    videos: VideosArgument = None,
    policies: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="Names with commas between; dense is the control.",
            show_default="dense,stc,motion",
        ),
    ] = None,
    interval: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CACHE,
            metavar="N,...",
            help="stc: every how many frames one is dense.",
            show_default="2,4,8",
        ),
    ] = None,
    ratio: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CACHE,
            metavar="X,...",
            help="stc: part of the tokens encoded between.",
            show_default="1/8,1/4,1/2",
        ),
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CACHE,
            metavar="X,...",
            help="motion: similarities to aim at; without --threshold, these only.",
            show_default="0.97,0.983,0.987,0.99,0.995",
        ),
    ] = None,
    threshold: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CACHE,
            metavar="X,...",
            help="motion: fixed thresholds instead; without --quality, these only.",
            show_default="0.8,0.9,0.95",
        ),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="motion: the file that `stc calibrate` wrote for this tower.",
            show_default="the package's",
        ),
    ] = None,
    fps: RatesOption = None,
    max_frames: SeveralFramesOption = 40,
    times: Annotated[
        bool,
        typer.Option(
            rich_help_panel=REPORT,
            help="Take times, too: a third more work, and for a quiet machine only.",
        ),
    ] = True,
    model: ModelOption = None,
    random_weights: RandomWeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    out: OutFolderOption = Path("out"),
    debug: DebugOption = False,
) -> None:
    """Compare cache settings on your videos: work, time, and likeness to a dense encode.

    No language model runs: it says how alike the tokens are, not what that does to answers.
    Writes fidelity.html and fidelity.csv.
    Exit code: 0 done, 1 a video ended early (the report says why), 2 bad input, 130 interrupted.
    """
    from stc_video.cli.fidelity import study_fidelity
    from stc_video.cli.study_settings import FidelitySettings

    settings = FidelitySettings(
        videos=tuple(videos or ()),
        policies=policies,
        interval=interval,
        ratio=ratio,
        quality=quality,
        threshold=threshold,
        calibration=calibration,
        fps=tuple(fps or _RATES),
        max_frames=max_frames,
        times=times,
        model=model,
        random_weights=random_weights,
        device=device,
        dtype=dtype.value,
        backend=None if backend is None else backend.value,
        threads=threads,
    )
    raise typer.Exit(study_fidelity(settings, out, command_line()))
