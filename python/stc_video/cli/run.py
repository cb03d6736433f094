# SPDX-License-Identifier: Apache-2.0
"""`stc run`: from the options to the report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from stc_video.cli.environment import chosen_backends, environment
from stc_video.cli.output import collected_warnings, command_line, prepare_folder, show_verdict
from stc_video.cli.run_settings import RunSettings
from stc_video.report import (
    ModelFacts,
    RunRecord,
    VideoFacts,
    headline,
    run_verdict,
    summarise,
    write_html,
    write_json,
)
from stc_video.report.tables import answer_cards, totals_table

if TYPE_CHECKING:
    from stc_video.cli.pipeline import Outcome, Pipeline
    from stc_video.cli.questions import Interview, Question
    from stc_video.loading.vision import LoadedModel
    from stc_video.video import VideoSource

_LIVE = (
    "Note: a live source goes on until Ctrl-C, --duration or --max-frames; the report is written "
    "then"
)
EXIT_CODES = {"complete": 0, "ended early": 1, "interrupted": 130}


def run(settings: RunSettings) -> int:
    """Encode a video frame by frame and write a report of what was reused, kept and saved.

    With --ask, a language model answers questions on the way.

    Exit code: 0 done, 1 ended early (the report says why), 2 bad input, 130 interrupted.
    """
    console = Console(highlight=False)
    prepare_folder(settings.out)
    record = encode_video(settings, command_line(), console)
    if not record.frames:
        console.print("Stopped before the first frame; no report was written.")
    else:
        write_report(record, settings.out, console)
    return EXIT_CODES[record.status]


def write_report(record: RunRecord, out: Path, console: Console) -> None:
    """Write report.html and report.json, and say where they are and what they come to."""
    html = write_html(record, out / "report.html")
    data = write_json(record, out / "report.json")
    _show_totals(record, console)
    console.print(f"Report: [bold]{html}[/bold] (open in a browser) and {data}", soft_wrap=True)
    show_verdict(console, run_verdict(record))
    if record.problem:
        error = Console(stderr=True, highlight=False, soft_wrap=True)
        error.print(f"{record.status}: {record.problem}", style="bold red", markup=False)


def encode_video(settings: RunSettings, command: str, console: Console) -> RunRecord:
    """Encode a video with a progress bar; returns everything that the report says."""
    import torch

    from stc_kernels import use_backend
    from stc_video.cli.pipeline import Pipeline
    from stc_video.video import default_clip, open_video

    # A wrong option should not wait for the model.
    settings.cache_config()
    settings.pruner()
    questions = settings.questions()
    path = settings.video or default_clip()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with (
        collected_warnings() as notes,
        open_video(
            path,
            fps=settings.fps,
            start=settings.start,
            duration=settings.duration,
            max_frames=settings.max_frames,
        ) as video,
        use_backend(settings.backend) if settings.backend else nullcontext(),
    ):
        _check_times(questions, video, settings.start)
        with console.status("Loading the model ..."):
            model, interview = _load(settings, questions)
            backends = chosen_backends(model.device.type, settings.backend)
        if model.notice:
            console.print(f"Note: {model.notice}", style="yellow")
        model.preprocessor = model.preprocessor.with_fit(settings.fit)
        if video.is_live and settings.duration is None and settings.max_frames is None:
            console.print(_LIVE, style="yellow")
        pipeline = Pipeline(model, settings, interview)
        try:
            with _progress(console, video.expected_frames) as show:
                outcome = pipeline.run(video, show)
        finally:
            pipeline.close()
            if interview is not None:
                interview.close()
        view = _view(pipeline)
    record = make_record(settings, command, video, pipeline, outcome, backends, [*view, *notes])
    return record if interview is None else _with_answers(record, interview, questions)


def _view(pipeline: Pipeline) -> list[str]:
    """Say what part of the pictures the model gets to see, if it is not the whole."""
    height, width = pipeline.picture_size
    rows, columns = pipeline.model.preprocessor.seen(height, width)
    if rows * columns > 0.99 * height * width:
        return []
    return [
        f"the model sees the middle {columns:.0f} x {rows:.0f} of {width} x {height} pixels, "
        f"{100 * rows * columns / (height * width):.0f} % of the picture; --fit pad or --fit "
        "stretch shows it the whole"
    ]


def _check_times(questions: Sequence[Question], video: VideoSource, start: float) -> None:
    for question in questions:
        if question.time < start:
            raise ValueError(
                f"--at must not be before --start, which is {start:g} s, got {question.time:g} s"
            )
        if video.duration is not None and video.duration < question.time < math.inf:
            raise ValueError(
                f"--at must be within the video, which lasts {video.duration:.2f} s, "
                f"got {question.time:g} s"
            )


def _load(
    settings: RunSettings, questions: Sequence[Question]
) -> tuple[LoadedModel, Interview | None]:
    """Load the tower; for questions, as a part of its whole model."""
    from stc_video.cli.questions import Interview
    from stc_video.loading.video_llm import load_chat_model
    from stc_video.loading.vision import load_model

    place = {"device": settings.device, "dtype": settings.dtype}
    if not questions:
        return load_model(settings.model, random_weights=settings.random_weights, **place), None
    if settings.model is not None and settings.random_weights is not None:
        raise ValueError("--model and --random-weights: give one of them, not both")
    name = settings.model or settings.random_weights
    assert name is not None
    chat = load_chat_model(name, **place)
    vision = chat.vision()
    interview = Interview(
        chat,
        questions,
        retrieve_tokens=settings.retrieve_tokens,
        max_new_tokens=settings.max_new_tokens,
    )
    return vision, interview


def _with_answers(
    record: RunRecord, interview: Interview, questions: Sequence[Question]
) -> RunRecord:
    from stc_video.loading.video_llm import ANSWERS_NOTICE

    notes = list(record.warnings)
    if record.model.random:
        notes.append(ANSWERS_NOTICE)
    left = len(questions) - len(interview.answers)
    if left:
        notes.append(f"the run ended before {left} of {len(questions)} questions were asked")
    return replace(record, answers=tuple(interview.answers), warnings=tuple(notes))


def make_record(
    settings: RunSettings,
    command: str,
    video: VideoSource,
    pipeline: Pipeline,
    outcome: Outcome,
    backends: dict[str, str],
    notes: Sequence[str],
) -> RunRecord:
    """Put together what the report says.

    Parameters
    ----------
    settings, command
        What was asked for.
    video, pipeline, outcome
        What was run; the pipeline closed or not.
    backends : dict
        Operator -> backend.
    notes : sequence of str
        What a reader must know besides.

    Returns
    -------
    RunRecord
        For `write_html` and `write_json`.
    """
    model = pipeline.model
    return RunRecord(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        command=command,
        status=outcome.status,
        problem=outcome.problem,
        warnings=(*([model.notice] if model.notice else []), *notes),
        video=VideoFacts(
            path=video.shown,
            name=video.name,
            codec=video.codec,
            width=video.width,
            height=video.height,
            duration=video.duration,
            source_fps=video.source_fps,
            sampled_fps=settings.fps,
        ),
        model=_model_facts(model, pipeline.feature_width if outcome.frames else None),
        settings=settings.shown(),
        environment=environment(),
        backends=backends,
        state_bytes=outcome.state_bytes,
        resets=outcome.resets,
        frames=tuple(outcome.frames),
        promise=outcome.promise,
    )


def _model_facts(model: LoadedModel, feature_width: int | None) -> ModelFacts:
    encoded = feature_width is not None
    return ModelFacts(
        name=model.name,
        description=model.description,
        random=model.random,
        prefix_tokens=model.prefix_tokens,
        grid=model.grid if encoded else (0, 0),
        feature_grid=model.feature_grid if encoded else (0, 0),
        feature_width=feature_width or 0,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
    )


@contextmanager
def _progress(console: Console, total: int | None) -> Iterator[Any]:
    """Show a progress bar; yields the function that moves it on."""
    columns = (
        SpinnerColumn(),
        TextColumn("Encoding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("frames  {task.fields[rate]}  work {task.fields[cost]} of dense"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("encode", total=total, rate="", cost="-")

        def show(outcome: Any) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            count = len(outcome.frames)
            rate = f"{count / elapsed:.1f} fps" if elapsed else ""
            bar.update(task, completed=count, rate=rate, cost=f"{100 * outcome.cost:.0f} %")

        yield show
        done = int(bar.tasks[0].completed)
        bar.update(task, total=max(done, 1), completed=done)


def _show_totals(record: RunRecord, console: Console) -> None:
    totals = summarise(record)
    console.print()
    console.print(headline(record, totals), style="bold")
    for warning in record.warnings:
        console.print(f"Note: {warning}", style="yellow", markup=False)
    for card in answer_cards(record):
        console.print(f"\n{card.question}", style="bold", markup=False)
        console.print(card.answer or "(empty)", markup=False)
        console.print(card.facts, style="dim", markup=False)
    console.print()
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "this run", "every frame dense", "ratio"):
        table.add_column(title, justify="left" if not title else "right")
    for row in totals_table(record, totals):
        table.add_row(*row)
    console.print(table)
