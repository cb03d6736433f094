# SPDX-License-Identifier: Apache-2.0
"""`stc chat`: a conversation in the terminal about a video that runs."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from stc_video.cli.options import (
    CalibrationOption,
    DeviceOption,
    DtypeOption,
    LanguageModelOption,
    MaxNewTokensOption,
    MemoryOption,
    RetrieveTokensOption,
    StorageOption,
    ThreadsOption,
    TokensPerFrameOption,
    load_calibration,
)
from stc_video.cli.output import show_note, show_verdict
from stc_video.config import CacheConfig
from stc_video.memory import command_memory
from stc_video.memory.config import RekvConfig
from stc_video.report.tables import clock, milliseconds
from stc_video.report.verdict import cache_verdict

if TYPE_CHECKING:
    from stc_video.session import Answer, StreamingSession
    from stc_video.video.live import LiveVideo

_HELP = (
    "A line is a question. /wait waits for the end of a recording, /stats shows times and memory, "
    "/reset forgets video and conversation, /quit ends."
)
_SHOWN_TIMES = 6


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """Options of `stc chat`."""

    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A video file, a camera such as /dev/video0, or an address such as rtsp://...",
        ),
    ]
    model: LanguageModelOption
    fps: Annotated[float, typer.Option(help="Frames per second that the model gets.")] = 2.0
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Push a recording as fast as possible, not in its own time."),
    ] = False
    calibration: CalibrationOption = None
    tokens_per_frame: TokensPerFrameOption = 64
    memory: MemoryOption = "rekv"
    retrieve_tokens: RetrieveTokensOption = RekvConfig.retrieve_tokens
    storage: StorageOption = RekvConfig.storage
    max_new_tokens: MaxNewTokensOption = 256
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    threads: ThreadsOption = None


def chat(settings: ChatSettings) -> int:
    """Talk about a video or a camera while it runs.

    Questions are lines; /help lists the commands. The conversation is remembered.
    Exit code: 0 done, 1 the video broke off, 2 bad input.
    """
    import torch

    from stc_video.loading.video_llm import load_chat_model
    from stc_video.session import StreamingSession
    from stc_video.video.live import LiveVideo

    console = Console(highlight=False, soft_wrap=True)
    stop = threading.Event()
    # Wrong options should not wait for the model.
    rekv = RekvConfig(retrieve_tokens=settings.retrieve_tokens, storage=settings.storage)
    memory = command_memory(settings.memory, rekv, RekvConfig())
    cache = CacheConfig(calibration=load_calibration(settings.calibration))
    video = LiveVideo(settings.source, settings.fps, stop, fast=settings.fast)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    with console.status("Loading the model ..."):
        loaded = load_chat_model(settings.model, device=settings.device, dtype=settings.dtype)
    if loaded.notice:
        show_note(console, loaded.notice)
    loaded.check_memory(memory)
    with StreamingSession(
        loaded.model,
        loaded.processor,
        memory=memory,
        cache=cache,
        tokens_per_frame=settings.tokens_per_frame,
    ) as session:
        camera = _Camera(session, video, console)
        conversation = _Conversation(
            session, camera, console, settings.max_new_tokens, loaded.random
        )
        console.print(_HELP, style="dim")
        camera.start()
        try:
            conversation.run()
        finally:
            stop.set()
            camera.join()
    return 1 if camera.problem else 0


class _Camera(threading.Thread):
    """Pushes frames until the video ends or it is told to stop."""

    def __init__(self, session: StreamingSession, video: LiveVideo, console: Console) -> None:
        super().__init__(name="camera", daemon=True)
        self.problem: Exception | None = None
        self.seen_first = threading.Event()
        self.video = video
        self._session, self._console = session, console

    def run(self) -> None:
        try:
            for frame in self.video:
                self._session.push(frame.image, frame.time)
                self.seen_first.set()
            if not self.video.stopped:
                notes = self.video.stats().notes()
                self._console.print("; ".join(["The video has ended", *notes]), style="dim")
        except (ValueError, RuntimeError) as error:
            self.problem = error
            if self.seen_first.is_set():
                text = f"The video broke off: {error}"
                self._console.print(text, style="bold red", markup=False)
        finally:
            self.seen_first.set()


class _Conversation:
    """Reads lines and answers them."""

    def __init__(
        self,
        session: StreamingSession,
        camera: _Camera,
        console: Console,
        max_new_tokens: int,
        random: bool,
    ) -> None:
        self._session, self._camera, self._console = session, camera, console
        self._max_new_tokens, self._random = max_new_tokens, random

    def run(self) -> None:
        """Go on until the input ends."""
        self._camera.seen_first.wait()
        if self._camera.problem is not None and not self._session.stats().frames:
            raise self._camera.problem
        while (line := self._read()) is not None:
            if line in ("/quit", "/exit"):
                return
            if line == "/wait" and self._camera.video.is_live:
                self._console.print("/wait is for recordings; a live source may never end.")
            elif line == "/wait":
                self._camera.join()
            elif line == "/stats":
                self._show_stats()
            elif line == "/reset":
                self._session.reset()
                self._console.print("Forgotten.")
            elif line.startswith("/"):
                self._console.print(_HELP, style="dim")
            elif line:
                self._answer(line)

    def _read(self) -> str | None:
        """The next line, or None at the end of the input."""
        interactive = sys.stdin.isatty()
        try:
            if interactive:
                return self._console.input("[bold]> [/bold]").strip()
            line = sys.stdin.readline()
        except (EOFError, KeyboardInterrupt):
            return None
        if not line:
            return None
        self._console.print(f"> {line.strip()}", style="bold", markup=False)
        return line.strip()

    def _answer(self, question: str) -> None:
        from stc_video.session.streaming import AnswerStream

        def show(text: str) -> None:
            self._console.print(text, end="", markup=False)

        tokenizer: Any = self._session.tokenizer
        stream = AnswerStream(tokenizer, show)
        try:
            answer = self._session.ask(
                question, dialogue=True, max_new_tokens=self._max_new_tokens, **stream.settings
            )
        except KeyboardInterrupt:
            self._console.print("\nStopped.", style="yellow")
            return
        except ValueError as error:
            self._console.print(str(error), style="red", markup=False)
            return
        self._console.print()
        self._console.print(_facts(answer, stream.first_token), style="dim", markup=False)

    def _show_stats(self) -> None:
        stats = self._session.stats()
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("stage", "count", "median", "p99"):
            table.add_column(title, justify="left" if title == "stage" else "right")
        for stage, times in stats.stages.items():
            if times.count:
                median, p99 = milliseconds(times.median), milliseconds(times.p99)
                table.add_row(stage, str(times.count), median, p99)
        self._console.print(table)
        held = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in stats.bytes.items())
        source = self._camera.video.stats()
        self._console.print(
            f"{stats.frames} frames seen, {source.skipped} skipped because they came too late, "
            f"{stats.memory_tokens} tokens remembered; {held}"
        )
        for note in source.notes():
            self._console.print(f"The video: {note}", style="yellow", markup=False)
        if (cache := stats.cache) is not None:
            verdict = cache_verdict(
                frames=cache.frames,
                work=cache.cost,
                promised=cache.promised,
                measured=cache.estimated_cosine,
                how="by its audits",
                held=cache.promise_held,
                random=self._random,
                pruned=True,
            )
            show_verdict(self._console, verdict)


def _facts(answer: Answer, first_token: float) -> str:
    frames = answer.retrieved or ()
    times = [clock(frame.time) for frame in frames if frame.time is not None]
    shown = ", ".join(times[-_SHOWN_TIMES:])
    return (
        f"{answer.frame} frames seen, answered from {len(frames)} ({'... ' * (len(times) > 6)}"
        f"{shown}); first token after {milliseconds(first_token)}"
    )
