# SPDX-License-Identifier: Apache-2.0
"""The options of `stc bench`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from stc_video.cli.options import (
    REPORT,
    BackendOption,
    DebugOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ThreadsOption,
)

__all__ = ["bench"]

CASES = "What is compared"


def bench(
    geometry: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=CASES,
            help="siglip-so400m, siglip-base, clip-l-336, dinov2-small, dinov2-base, dinov2-large, "
            "or all; with commas between, or repeated. Weights are random.",
            show_default="siglip-base",
        ),
    ] = None,
    streams: Annotated[
        str,
        typer.Option(rich_help_panel=CASES, help="Streams encoded in one call, such as 1,4,8,32."),
    ] = "1",
    ratios: Annotated[
        str,
        typer.Option(
            rich_help_panel=CASES,
            help="Parts of the tokens that a cached frame re-encodes, such as 1/2 or 0.25.",
        ),
    ] = "1/4,1/8,1/16",
    contenders: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CASES,
            help="dense-eager, dense-compiled, dense-graph, dense-compiled-graph, paper-eager, "
            "paper-graph, stc, motion, motion-refresh; with commas between.",
            show_default="all that run on the device",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(rich_help_panel=CASES, help="Compile the dense tower, which takes a while."),
    ] = True,
    layers: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CASES,
            min=1,
            help="Fewer layers, for a quick look.",
            show_default="the geometry's own",
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(rich_help_panel=REPORT, min=3, help="How often each is timed, in turns."),
    ] = 20,
    seconds: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="End a case after so many seconds, if each was timed three times.",
            show_default="no end",
        ),
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = Dtype.auto,
    backend: BackendOption = None,
    threads: ThreadsOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=REPORT, help="For programs.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="Folder for bench.csv, bench.json and bench.svg.",
            show_default="no files",
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(rich_help_panel=REPORT, help="Name of those files, without the ending.")
    ] = "bench",
    limits: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="A CSV of ratios that must be kept, such as benchmarks/limits/gpu_cacher.csv.",
            show_default="none",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Compare the time of cached frames with that of dense ones, and of the paper's.

    All contenders of a case take turns in one process; each is checked before it is timed.
    Exit code: 0 done, 1 a contender was wrong or could not run, or a limit was not kept, 2 bad
    input, 130 interrupted.
    """
    from stc_video.bench.grid import Grid
    from stc_video.cli.bench import Output, run_bench

    grid = Grid.parse(
        geometries=geometry or ("siglip-base",),
        streams=streams,
        ratios=ratios,
        contenders=contenders,
        compiled=compiled,
        device=device,
        dtype=dtype.value,
        layers=layers,
        rounds=repeats,
        seconds=seconds,
    )
    output = Output(out, name, limits, as_json, shlex.join(["stc", *sys.argv[1:]]))
    asked = None if backend is None else backend.value
    raise typer.Exit(run_bench(grid, output, backend=asked, threads=threads))
