# SPDX-License-Identifier: Apache-2.0
"""`stc bench`: cached frames against dense ones, timed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stc_video.cli.options import (
    CASES,
    REPORT,
    BackendOption,
    DeviceOption,
    DtypeOption,
    ThreadsOption,
)
from stc_video.cli.output import collected_warnings, command_line, prepare_folder
from stc_video.cli.stop import INTERRUPTED, Stop

if TYPE_CHECKING:
    from stc_video.bench.grid import Grid
    from stc_video.bench.limits import Limit


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Options of `stc bench`."""

    geometry: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=CASES,
            help="siglip-so400m, siglip-base, clip-l-336, dinov2-small, dinov2-base, dinov2-large, "
            "or all; with commas between, or repeated. Weights are random.",
        ),
    ] = field(default_factory=lambda: ["siglip-base"])
    streams: Annotated[
        str,
        typer.Option(rich_help_panel=CASES, help="Streams encoded in one call, such as 1,4,8,32."),
    ] = "1"
    ratios: Annotated[
        str,
        typer.Option(
            rich_help_panel=CASES,
            help="Parts of the tokens that a cached frame re-encodes, such as 1/2 or 0.25.",
        ),
    ] = "1/4,1/8,1/16"
    contenders: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=CASES,
            help="dense-eager, dense-compiled, dense-graph, dense-compiled-graph, paper-eager, "
            "paper-graph, stc, motion, motion-refresh; with commas between.",
            show_default="all that run on the device",
        ),
    ] = None
    compiled: Annotated[
        bool,
        typer.Option(rich_help_panel=CASES, help="Compile the dense tower, which takes a while."),
    ] = True
    layers: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CASES,
            min=1,
            help="Fewer layers, for a quick look.",
            show_default="the geometry's own",
        ),
    ] = None
    repeats: Annotated[
        int,
        typer.Option(rich_help_panel=REPORT, min=3, help="How often each is timed, in turns."),
    ] = 20
    seconds: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="End a case after so many seconds, if each was timed three times.",
            show_default="no end",
        ),
    ] = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    backend: BackendOption = None
    threads: ThreadsOption = None
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=REPORT, help="For programs.")
    ] = False
    out: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="Folder for bench.csv, bench.json and, with matplotlib, bench.svg.",
            show_default="no files",
        ),
    ] = None
    name: Annotated[
        str, typer.Option(rich_help_panel=REPORT, help="Name of those files, without the ending.")
    ] = "bench"
    limits: Annotated[
        Path | None,
        typer.Option(
            rich_help_panel=REPORT,
            help="A CSV of ratios that must be kept, such as benchmarks/limits/gpu_cacher.csv.",
            show_default="none",
        ),
    ] = None

    def grid(self) -> Grid:
        """Return what is to be measured.

        Raises
        ------
        ValueError
            If an option is not possible.
        """
        from stc_video.bench.grid import Grid

        return Grid.parse(
            geometries=self.geometry,
            streams=self.streams,
            ratios=self.ratios,
            contenders=self.contenders,
            compiled=self.compiled,
            device=self.device,
            dtype=self.dtype,
            layers=self.layers,
            rounds=self.repeats,
            seconds=self.seconds,
        )

    def read_limits(self) -> list[Limit]:
        """Return the limits that must be kept.

        Raises
        ------
        ValueError
            If the file cannot be read, or does not fit the other options.
        """
        from stc_video.bench.limits import read_limits

        if self.limits is None:
            return []
        if self.layers is not None:
            raise ValueError("--limits hold for whole towers: leave --layers out")
        return read_limits(self.limits)


def bench(settings: BenchSettings) -> int:
    """Compare the time of cached frames with that of dense ones, and of the paper's.

    All contenders of a case take turns in one process; each is checked before it is timed.
    Exit code: 0 done, 1 a contender was wrong or could not run, or a limit was not kept, 2 bad
    input, 130 interrupted (what was finished by then is kept).
    """
    import torch

    from stc_kernels import use_backend
    from stc_video.cli.bench_output import BenchOutput
    from stc_video.cli.environment import chosen_backends

    grid, limits = settings.grid(), settings.read_limits()
    if Path(settings.name).name != settings.name:
        raise ValueError(f"--name must be the name of a file, got {settings.name!r}")
    if settings.out is not None:
        prepare_folder(settings.out)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with use_backend(settings.backend) if settings.backend else nullcontext():
        backends = chosen_backends(grid.device.type, settings.backend)
        output = BenchOutput(grid, limits, backends, settings.out, settings.name,
                             as_json=settings.as_json, command=command_line())  # fmt: skip
        stop = Stop()
        try:
            with stop, collected_warnings() as notes:
                output.measure(stop)
        except KeyboardInterrupt:
            output.stopped()
            return INTERRUPTED
    return output.close(notes)
