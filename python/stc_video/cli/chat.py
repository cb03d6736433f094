# SPDX-License-Identifier: Apache-2.0
"""`stc chat`: a conversation in the terminal about a video that runs."""

from __future__ import annotations

import sys
import threading
from typing import Any

from rich.console import Console
from rich.table import Table

from stc_video.cli.output import show_verdict
from stc_video.loading.video_llm import load_chat_model
from stc_video.memory import RekvConfig
from stc_video.report.tables import clock, milliseconds
from stc_video.report.verdict import cache_verdict
from stc_video.session import Answer, StreamingSession
from stc_video.session.streaming import AnswerStream
from stc_video.video.live import LiveVideo

__all__ = ["run_chat"]

_HELP = (
    "A line is a question. /wait waits for the end of a recording, /stats shows times and memory, "
    "/reset forgets video and conversation, /quit ends."
)
_SHOWN_TIMES = 6


def run_chat(
    source: str,
    name: str,
    *,
    fps: float,
    fast: bool,
    memory: RekvConfig,
    tokens_per_frame: int,
    max_new_tokens: int,
    device: str,
    dtype: str,
    threads: int | None,
) -> int:
    """Push a source in one thread and answer the lines of standard input in this one.

    Parameters
    ----------
    source, fps, fast
        As for :class:`LiveVideo`.
    name, device, dtype
        As for :func:`load_chat_model`.
    memory, tokens_per_frame
        As for :class:`StreamingSession`.
    max_new_tokens
        Longest answer.
    threads
        CPU threads, or None for torch's choice.

    Returns
    -------
    int
        The exit code: 0, or 1 if the video broke off.

    Raises
    ------
    ValueError
        For bad input, such as a video without a first frame.
    """
    import torch

    console = Console(highlight=False, soft_wrap=True)
    stop = threading.Event()
    video = LiveVideo(source, fps, stop, fast=fast)  # a wrong option should not wait for the model
    if threads is not None:
        torch.set_num_threads(threads)
    with console.status("Loading the model ..."):
        chat = load_chat_model(name, device=device, dtype=dtype)
    if chat.notice:
        console.print(f"Note: {chat.notice}", style="yellow")
    with StreamingSession(
        chat.model, chat.processor, memory=memory, tokens_per_frame=tokens_per_frame
    ) as session:
        camera = _Camera(session, video, console)
        conversation = _Conversation(session, camera, console, max_new_tokens, chat.random)
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
