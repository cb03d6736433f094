# SPDX-License-Identifier: Apache-2.0
"""`stc eval`: the questions of a benchmark, asked of a model, and their scores."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
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
    CalibrationOption,
    DeviceOption,
    DtypeOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from stc_video.evaluation.configurations import Configuration
    from stc_video.evaluation.queries import Query, QuerySet
    from stc_video.evaluation.runner import Sampling
    from stc_video.evaluation.worker import Assignment


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
        _option(CASES, "Add dense, blind, the last 4 frames, uniform frames, random tokens."),
    ] = False
    study: Annotated[
        bool,
        _option(CASES, "Add dense, and policies, pruners and memories that save ever more."),
    ] = False
    policy: Annotated[
        str | None, _option(CACHE, "motion, stc, or none: every frame.", show_default="motion")
    ] = None
    quality: Annotated[
        float | None, _option(CACHE, "motion: cosine to dense.", show_default="0.983")
    ] = None
    calibration: CalibrationOption = None
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
    template: Annotated[
        Path | None,
        _option(QUESTIONS, "JSON file of the words around a question.", show_default="ours"),
    ] = None
    max_new_tokens: Annotated[
        int | None, _option(LIMITS, "Longest answer, in tokens.", min=1, show_default="16")
    ] = None
    limit: Annotated[
        int | None, _option(QUESTIONS, "So many questions, of each task its share.")
    ] = None
    shard: Annotated[str, _option(QUESTIONS, "i/n: every n-th video, from the i-th on.")] = "1/1"
    ray: Annotated[
        str | None,
        _option(
            QUESTIONS,
            "Share the videos among the machines of a Ray cluster: auto, local or HOST:PORT.",
            metavar="ADDRESS",
        ),
    ] = None
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

        given = self.given(_CONFIGURATION)
        if self.calibration is not None:  # nodes of a cluster have folders of their own
            given["calibration"] = str(self.calibration.resolve())
        made = Configuration(**given)
        for name, owner in (("retrieve_tokens", "rekv"), ("window_frames", "window")):
            if getattr(self, name) is not None and made.memory != owner:
                raise ValueError(f"{_flag(name)} belongs to --memory {owner}, not to {made.memory}")
        return made


_CONFIGURATION = (
    "policy quality calibration ratio interval prune tokens_per_frame memory retrieve_tokens "
    "window_frames"
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
    study: bool
    sampling: Sampling
    protocol: dict[str, Any]
    file: Path


def evaluate(settings: EvaluationSettings) -> int:
    """Ask a model the questions of a benchmark, and score its answers.

    Each video is decoded once, and each question is asked at its time. docs/evaluation.md says
    which figures can be compared.

    Exit code: 0 done, 2 bad input, 130 interrupted or not all asked; --resume goes on.
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
        study=settings.study,
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
    questions = load_queries(settings.benchmark, settings.data, template=settings.template, **given)
    if not settings.videos.is_dir():
        raise ValueError(f"--videos {settings.videos} is not a folder")
    if not any(find_video(settings.videos, video) for video in questions.videos):
        raise ValueError(
            f"--videos {settings.videos} has none of the {len(questions.videos)} videos of the "
            f"file; the first should be {settings.videos / questions.videos[0]}"
        )
    return questions


def _run(task: EvaluationTask, settings: EvaluationSettings) -> int:
    from rich.console import Console

    from stc_video.cli.evaluate_output import progress, write_results
    from stc_video.cli.output import show_note
    from stc_video.cli.stop import INTERRUPTED, Stop
    from stc_video.evaluation.answers import AnswerFile
    from stc_video.evaluation.crew import Crew
    from stc_video.evaluation.worker import Worker

    console = Console(highlight=False, soft_wrap=True)
    if task.file.exists() and not settings.resume:
        raise ValueError(
            f"{task.file} is there already: --resume goes on, another --out starts anew"
        )
    with console.status("Loading the model ..."):
        assignment = _assignment(task, settings)
        worker = Worker(assignment) if settings.ray is None else Crew(assignment, settings.ray)
    facts, stop = worker.facts, Stop()
    for note in facts.notes:
        show_note(console, note)
    names = [one.name for one in facts.configurations]
    with (
        closing(worker),
        stop,
        AnswerFile(task.file, task.protocol | facts.protocol, resume=settings.resume) as answers,
        progress(console, task, answers.answered, names) as show,
    ):
        finished = worker.run(task.here, answers, show, lambda: stop.wanted)
    write_results(task, console)
    for video in worker.lost:
        console.print(f"Three workers died on {video}; --resume tries it again.", style="bold red")
    return 0 if finished else INTERRUPTED


def _assignment(task: EvaluationTask, settings: EvaluationSettings) -> Assignment:
    """What a worker must know; nodes of a cluster have folders of their own to start in."""
    from stc_video.evaluation.worker import Assignment

    folder = Path(settings.model)
    return Assignment(
        benchmark=settings.benchmark,
        videos=settings.videos.resolve(),
        configurations=task.configurations,
        controls=task.controls,
        study=task.study,
        sampling=task.sampling,
        model=str(folder.resolve()) if settings.ray and folder.is_dir() else settings.model,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
    )
