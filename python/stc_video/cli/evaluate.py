# SPDX-License-Identifier: Apache-2.0
"""`stc eval`: the questions of a benchmark, asked of a model, and their scores."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stc_video.cli.options import (
    CACHE,
    CASES,
    LIMITS,
    MEMORY,
    MODEL,
    PRUNE,
    QUESTIONS,
    REPORT,
    VIDEO,
    DeviceOption,
    DtypeOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from rich.console import Console

    from stc_video.evaluation.configurations import Configuration
    from stc_video.evaluation.queries import Query, QuerySet
    from stc_video.evaluation.runner import Sampling
    from stc_video.loading.video_llm import ChatModel


def _option(panel: str, text: str, **settings: Any) -> Any:
    return typer.Option(rich_help_panel=panel, help=text, **settings)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Options of `stc eval`; None stands for the default of what it belongs to."""

    benchmark: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARK",
            help="ovo-bench, streamingbench, mlvu, egoschema, video-mme or rekv.",
        ),
    ]
    data: Annotated[Path, _option(VIDEO, "The benchmark's file, or the folder of its files.")]
    videos: Annotated[Path, _option(VIDEO, "Folder of its videos.")]
    model: Annotated[str, _option(MODEL, "Folder or Hugging Face id of a video language model.")]
    preset: Annotated[
        str | None, _option(CASES, "Settings of a published row, in place of those below.")
    ] = None
    compare: Annotated[
        list[str] | None,
        _option(CASES, "One more configuration: key=value,... that differ; can be repeated."),
    ] = None
    controls: Annotated[
        bool,
        _option(CASES, "Add dense, the last 4 frames, uniform frames and random tokens."),
    ] = False
    policy: Annotated[
        str | None, _option(CACHE, "motion, stc, or none: every frame.", show_default="motion")
    ] = None
    quality: Annotated[
        float | None, _option(CACHE, "motion: cosine to dense.", show_default="0.983")
    ] = None
    ratio: Annotated[
        float | None, _option(CACHE, "stc: part encoded between.", show_default="0.25")
    ] = None
    interval: Annotated[
        int | None, _option(CACHE, "stc: every how many frames dense.", show_default="2")
    ] = None
    prune: Annotated[
        str | None, _option(PRUNE, "Pruner; none keeps every token.", show_default="stc")
    ] = None
    tokens_per_frame: Annotated[
        int | None, _option(PRUNE, "Tokens kept per frame.", min=1, show_default="64")
    ] = None
    memory: Annotated[
        str | None, _option(MEMORY, "rekv, plain or window.", show_default="rekv")
    ] = None
    retrieve_tokens: Annotated[
        int | None, _option(MEMORY, "rekv: tokens read.", min=1, show_default="4096")
    ] = None
    window_frames: Annotated[
        int | None, _option(MEMORY, "window: frames kept.", min=1, show_default="4")
    ] = None
    protocol: Annotated[
        str | None,
        _option(VIDEO, "stream: one pass per video. clip: a clip each.", show_default="stream"),
    ] = None
    fps: Annotated[float | None, _option(VIDEO, "Frames per second.", show_default="1")] = None
    frames: Annotated[int | None, _option(VIDEO, "clip: so many frames, instead of a rate.")] = None
    context_seconds: Annotated[
        float | None, _option(VIDEO, "streamingbench, clip: seconds before a question.")
    ] = None
    subtitles: Annotated[Path | None, _option(VIDEO, "video-mme: folder of .srt files.")] = None
    max_new_tokens: Annotated[
        int | None, _option(LIMITS, "Longest answer, in tokens.", min=1, show_default="16")
    ] = None
    limit: Annotated[
        int | None, _option(QUESTIONS, "So many questions, of each task its share.")
    ] = None
    shard: Annotated[str, _option(QUESTIONS, "i/n: every n-th video, from the i-th on.")] = "1/1"
    resume: Annotated[bool, _option(REPORT, "Go on with the answers that are in --out.")] = False
    out: Annotated[Path, _option(REPORT, "Folder for answers and report.")] = Path("evaluation")
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    threads: ThreadsOption = None

    def given(self, names: str) -> dict[str, Any]:
        """Those of these options that have a value."""
        return {n: getattr(self, n) for n in names.split() if getattr(self, n) is not None}

    def configuration(self) -> Configuration:
        """The main configuration; raises ValueError for what belongs to another setting."""
        from stc_video.evaluation.configurations import Configuration

        made = Configuration(**self.given(_CONFIGURATION))
        for name, owner in (("retrieve_tokens", "rekv"), ("window_frames", "window")):
            if getattr(self, name) is not None and made.memory != owner:
                raise ValueError(f"{_flag(name)} belongs to --memory {owner}, not to {made.memory}")
        return made


_CONFIGURATION = (
    "policy quality ratio interval prune tokens_per_frame memory retrieve_tokens window_frames"
)
_SAMPLING = "protocol fps frames max_new_tokens"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True)
class EvaluationTask:
    """What is asked, of what, and how; all checked before a model is loaded."""

    questions: QuerySet
    queries: list[Query]
    here: list[Query]
    videos: Path
    configurations: list[Configuration]
    controls: bool
    sampling: Sampling
    protocol: dict[str, Any]
    file: Path


def evaluate(settings: EvaluationSettings) -> int:
    """Ask a model the questions of a benchmark, and score its answers.

    Each video is decoded once, and each question is asked at its time. docs/evaluation.md says
    which figures can be compared.

    Exit code: 0 done, 2 bad input, 130 interrupted; --resume goes on.
    """
    from stc_video.cli.output import prepare_folder

    task = _prepare(settings)
    prepare_folder(settings.out)
    return _run(task, settings)


def _prepare(settings: EvaluationSettings) -> EvaluationTask:
    """Check everything that needs no model."""
    from stc_video.evaluation.configurations import parse_configuration
    from stc_video.evaluation.plan import parse_shard, sample, shard_of
    from stc_video.evaluation.presets import find_preset
    from stc_video.evaluation.runner import Sampling

    left_open = ""
    if settings.preset is None:
        main, sampling = settings.configuration(), Sampling(**settings.given(_SAMPLING))
    else:
        preset = find_preset(settings.preset)
        main, sampling, left_open = preset.configuration, preset.sampling, preset.left_open
        for name in settings.given(f"{_CONFIGURATION} {_SAMPLING}"):
            raise ValueError(f"{_flag(name)} is decided by --preset {settings.preset}")
    others = [parse_configuration(text, main) for text in settings.compare or ()]
    number = parse_shard(settings.shard)
    questions = _load(settings, sampling)
    queries = sample(questions.queries, settings.limit)
    protocol = {
        "benchmark": settings.benchmark,
        "files": questions.files,
        "sampling": asdict(sampling),
        "limit": settings.limit,
        "options": {n: str(v) for n, v in settings.given("context_seconds subtitles").items()},
        "template": questions.template,
        "left_open": left_open,
    }
    name = "answers.jsonl" if number[1] == 1 else f"answers-{number[0]}-of-{number[1]}.jsonl"
    return EvaluationTask(
        questions=questions,
        queries=queries,
        here=shard_of(queries, number),
        videos=settings.videos,
        configurations=[main, *others],
        controls=settings.controls,
        sampling=sampling,
        protocol=protocol,
        file=settings.out / name,
    )


def _load(settings: EvaluationSettings, sampling: Sampling) -> QuerySet:
    """Read the questions, and make sure that there are videos."""
    from stc_video.evaluation.loaders import BENCHMARKS, load_queries
    from stc_video.evaluation.plan import find_video

    if settings.benchmark not in BENCHMARKS:
        raise ValueError(
            f"the benchmark must be one of {', '.join(BENCHMARKS)}, got {settings.benchmark!r}"
        )
    given = settings.given("context_seconds subtitles")
    owner = {"context_seconds": "streamingbench", "subtitles": "video-mme"}
    for name in given:
        if owner[name] != settings.benchmark:
            raise ValueError(f"{_flag(name)} belongs to {owner[name]}")
    if "context_seconds" in given and sampling.protocol != "clip":
        raise ValueError("--context-seconds needs --protocol clip: a stream has all that was shown")
    questions = load_queries(settings.benchmark, settings.data, **given)
    if not settings.videos.is_dir():
        raise ValueError(f"--videos {settings.videos} is not a folder")
    if not any(find_video(settings.videos, video) for video in questions.videos):
        raise ValueError(
            f"--videos {settings.videos} has none of the {len(questions.videos)} videos of the "
            f"file; the first should be {settings.videos / questions.videos[0]}"
        )
    return questions


def _run(task: EvaluationTask, settings: EvaluationSettings) -> int:
    import torch
    from rich.console import Console

    from stc_video.cli.evaluate_output import progress, write_results
    from stc_video.cli.stop import INTERRUPTED, Stop
    from stc_video.evaluation.answers import AnswerFile
    from stc_video.evaluation.runner import Runner
    from stc_video.loading.video_llm import load_chat_model

    console = Console(highlight=False, soft_wrap=True)
    if task.file.exists() and not settings.resume:
        raise ValueError(
            f"{task.file} is there already: --resume goes on, another --out starts anew"
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with console.status("Loading the model ..."):
        chat = load_chat_model(settings.model, device=settings.device, dtype=settings.dtype)
    if chat.notice:
        console.print(f"Note: {chat.notice}", style="yellow")
    configurations = _all_configurations(task, chat, console)
    protocol = task.protocol | _model_facts(chat, configurations, settings.benchmark)
    names = [one.name for one in configurations]
    stop = Stop()
    with (
        stop,
        AnswerFile(task.file, protocol, resume=settings.resume) as answers,
        progress(console, task, answers.answered, names) as show,
    ):
        runner = Runner(chat, configurations, task.sampling, task.videos, answers, show,
                        lambda: stop.wanted)  # fmt: skip
        try:
            finished = runner.run(task.here)
        finally:
            runner.close()
    write_results(task, console)
    return 0 if finished else INTERRUPTED


def _all_configurations(
    task: EvaluationTask, chat: ChatModel, console: Console
) -> list[Configuration]:
    """The configurations and their controls, checked against the model's tokens."""
    from stc_video.acceleration import accelerate
    from stc_video.evaluation.configurations import controls

    untyped: Any = accelerate(chat.model, None, "none")
    with untyped.stc as handle:
        grid = handle.grid
    tokens = None if grid is None else grid[0] * grid[1]
    made = list(task.configurations)
    if task.controls:
        added = controls(made[0], tokens)
        # What is a control by itself is run once, under the control's name.
        made = [next((c for c in added if _is_same(c, one)), one) for one in made]
        for control in added:
            if not any(_is_same(control, one) for one in made):
                made.append(control)
        if tokens is None:
            console.print(
                "Note: the frames of this model have another number of tokens in each video, so "
                "there is no control of uniform frames",
                style="yellow",
            )
    names = [one.name for one in made]
    if len(set(names)) < len(names):
        raise ValueError(f"two configurations are the same: {', '.join(names)}")
    for one in made:
        pruner = one.pruner()
        if tokens is not None and pruner.exact:
            pruner.tokens_kept(tokens)
    return made


def _is_same(one: Configuration, other: Configuration) -> bool:
    return replace(one, name="") == replace(other, name="")


def _model_facts(
    chat: ChatModel, configurations: list[Configuration], benchmark: str
) -> dict[str, Any]:
    """What of the protocol is known only with the model."""
    from stc_video.evaluation.configurations import described
    from stc_video.evaluation.scoring.parsers import PARSERS, rule_of

    config: Any = chat.model.config
    vision = config.vision_config
    size = getattr(vision, "image_size", None)
    tokenizer = getattr(chat.processor, "tokenizer", chat.processor)
    return {
        "model": {
            "name": chat.name,
            "class": type(chat.model).__name__,
            "random": chat.random,
            # The commit of the hub; a folder has none.
            "revision": getattr(config, "_commit_hash", None),
            "dtype": str(chat.model.dtype).removeprefix("torch."),
            "device": chat.model.device.type,
        },
        "resolution": f"{size} x {size}" if isinstance(size, int) else "that of the video",
        "chat_template": tokenizer.chat_template,
        "decoding": "greedy",
        "parsers": {parser: rule_of(benchmark, parser) for parser in PARSERS},
        "configurations": described(configurations),
    }
