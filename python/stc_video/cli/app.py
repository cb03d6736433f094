# SPDX-License-Identifier: Apache-2.0
"""The command `stc` and its subcommands. Heavy imports wait until one runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console

from stc_video.cli.bench import bench
from stc_video.cli.calibrate import calibrate
from stc_video.cli.chat import chat
from stc_video.cli.demo import demo
from stc_video.cli.doctor import doctor
from stc_video.cli.evaluate import evaluate
from stc_video.cli.fidelity import fidelity
from stc_video.cli.models import models
from stc_video.cli.options import add_command
from stc_video.cli.output import warnings_as_notes
from stc_video.cli.prune_study import prune_study
from stc_video.cli.run import run
from stc_video.cli.serve import serve
from stc_video.cli.stop import INTERRUPTED
from stc_video.cli.world import world

BAD_INPUT = 2
#: how messages of the package begin: "CacheConfig: quality must be ..."
_SETTING = re.compile(r"[`\w]+: (\w+)(?= must )")

app = typer.Typer(
    name="stc",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Encode video with a fraction of a vision tower's work, and see what happened.",
)
_COMMANDS = (demo, run, bench, calibrate, prune_study, fidelity, serve, chat, models, doctor, world)
for _command in _COMMANDS:
    add_command(app, _command, _command.__name__.replace("_", "-"))
add_command(app, evaluate, "eval")


def _version(is_asked: bool) -> None:
    if is_asked:
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
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is not None:
        sys.argv = [sys.argv[0], *typed]
    try:
        with warnings_as_notes():
            app(typed, prog_name="stc", standalone_mode=True)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if "--debug" in typed:
            raise
        return _explain(error, typed)
    return 0


def _explain(error: Exception, typed: Sequence[str]) -> int:
    """Print an error as one red sentence and return the exit code."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    expected = isinstance(error, (ValueError, OSError, ModuleNotFoundError)) or type(
        error
    ).__name__ in ("BackendUnavailableError", "AttachError")
    text = _as_typed(str(error).strip(), typed) or type(error).__name__
    if not expected:
        text = f"{type(error).__name__}: {text} (unexpected; --debug shows where)"
    console.print(text, style="bold red", markup=False)
    return BAD_INPUT if expected else 1


def _as_typed(text: str, typed: Sequence[str]) -> str:
    """Name the option where a message begins with the setting behind it."""
    found = _SETTING.match(text)
    if found is None:
        return text
    commands: dict[str, Any] = getattr(typer.main.get_command(app), "commands", {})
    parameters = commands[typed[0]].params if typed[0] in commands else ()
    option = f"--{found[1].replace('_', '-')}"
    is_one = any(option in parameter.opts for parameter in parameters)
    return option + text[found.end() :] if is_one else text
