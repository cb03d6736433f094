# SPDX-License-Identifier: Apache-2.0
"""Answers under way: a bounded number at a time, each can be stopped."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

from stc_video.errors import AnswerStoppedError
from stc_video.serve.config import ServeConfig
from stc_video.serve.errors import Refused
from stc_video.serve.limits import TokenBucket
from stc_video.serve.metrics import Metrics
from stc_video.serve.streams import LiveStream
from stc_video.session import Answer
from stc_video.session.streaming import AnswerStream

_LOG = logging.getLogger(__name__)


class LiveAnswer:
    """An answer that is being made in a thread.

    Attributes
    ----------
    text
        The streamer, which can be told to stop.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self._done: asyncio.Future[Answer | None] = self._loop.create_future()
        # Nobody may be left to hear of an error, which is in the log as well.
        self._done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self.text = AnswerStream(tokenizer, self._hand_on, stop)

    def _hand_on(self, piece: str | None) -> None:
        self._post(lambda: self._pieces.put_nowait(piece))

    def _post(self, call: Callable[[], None]) -> None:
        # The loop is gone when the service has ended meanwhile.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def finish(self, result: Answer | Exception | None) -> None:
        """Tell how it ended; None if it was stopped. Called in the thread."""

        def resolve() -> None:
            if isinstance(result, Exception):
                self._done.set_exception(result)
            else:
                self._done.set_result(result)

        self._hand_on(None)
        self._post(resolve)

    def stop(self) -> None:
        """End it with the next token; without effect if it has ended."""
        self.text.stop()

    @property
    def ended(self) -> bool:
        """Whether its thread is done with it."""
        return self._done.done()

    async def pieces(self, patience: float) -> AsyncIterator[str]:
        """Yield the text piece by piece, and an empty one after each pause of ``patience``."""
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), patience)
            except asyncio.TimeoutError:
                piece = ""
            if piece is None:
                return
            yield piece

    async def answer(self) -> Answer | None:
        """Wait for the end; None if it was stopped.

        Raises
        ------
        Exception
            What went wrong.
        """
        return await asyncio.shield(self._done)


class AnswerDesk:
    """Takes questions; so many are answered at a time, and so many wait.

    Parameters
    ----------
    tokenizer
        The model's.
    config
        Limits.
    metrics
        Where they are counted.
    """

    def __init__(self, tokenizer: Any, config: ServeConfig, metrics: Metrics) -> None:
        self._tokenizer = tokenizer
        self._limit = config.max_questions + config.max_waiting
        self._metrics = metrics
        per_minute = config.questions_per_minute
        self._rate = TokenBucket(per_minute / 60, per_minute / 4)
        self._open: set[LiveAnswer] = set()
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # Daemons, because a model that hangs must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"answer {number}", daemon=True)
            for number in range(config.max_questions)
        ]
        for thread in self._threads:
            thread.start()

    def ask(
        self,
        stream: LiveStream,
        question: str,
        history: Sequence[tuple[str, str]],
        settings: dict[str, Any],
        stop: Sequence[str] = (),
    ) -> LiveAnswer:
        """Begin an answer, which ends before a stop string.

        Raises
        ------
        Refused
            With status 429 if there are too many questions.
        """
        wait = self._rate.take()
        if wait or len(self._open) >= self._limit:
            self._metrics.answers.labels("refused").inc()
            seconds = max(1, round(wait + 0.5))
            raise Refused(
                429, f"too many questions; try again in {seconds} s", "too_many_questions",
                {"Retry-After": str(seconds)},
            )  # fmt: skip
        live = LiveAnswer(self._tokenizer, stop)
        self._open.add(live)
        begin = time.perf_counter()
        self._waiting.put(lambda: self._make(live, stream, question, history, settings, begin))
        return live

    def _work(self) -> None:
        while (make := self._waiting.get()) is not None:
            make()

    def _make(
        self,
        live: LiveAnswer,
        stream: LiveStream,
        question: str,
        history: Sequence[tuple[str, str]],
        settings: dict[str, Any],
        begin: float,
    ) -> None:
        """Answer in this thread; whatever happens is counted once and told."""
        result: Answer | Exception | None = None
        outcome = "stopped"
        try:
            if not live.text.stopped:  # it may have waited longer than its client
                result = stream.session.ask(
                    question, history=history, **live.text.settings, **settings
                )
            if not live.text.stopped:
                outcome = "complete"
                self._metrics.first_token_seconds.observe(live.text.first_token)
                self._metrics.answer_seconds.observe(time.perf_counter() - begin)
        except AnswerStoppedError:
            pass
        except Exception as error:
            outcome, result = "failed", error
            _LOG.exception("stream %s: a question failed", stream.name)
        self._open.discard(live)
        self._metrics.answers.labels(outcome).inc()
        live.finish(result)

    def stop(self) -> None:
        """Let all answers end with their next tokens."""
        for live in list(self._open):
            live.stop()

    def close(self, deadline: float) -> None:
        """Stop all answers, and wait for their threads until a time of ``time.monotonic``."""
        self.stop()
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                _LOG.error("an answer could not be ended in time")
