# SPDX-License-Identifier: Apache-2.0
"""Questions at times of a video: which, when, and their answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stc_video.loading.video_llm import ChatModel
from stc_video.memory.config import RekvConfig
from stc_video.report import AnswerRecord, RetrievedFrame

_CLOCK = re.compile(r"(?:(\d+):)?(?:(\d{1,2}):)?(\d+(?:\.\d*)?)")


@dataclass(frozen=True)
class Question:
    """A question, and when it is asked in seconds since the first frame; infinite for the end."""

    text: str
    time: float


def parse_time(text: str) -> float:
    """Read a time: ``12.5``, ``00:12``, ``1:02:03`` or ``end``.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    if text.strip() == "end":
        return math.inf
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"--at must be seconds, mm:ss, hh:mm:ss or end, got {text!r}")
    first, second, seconds = found.groups()
    hours, minutes = (first, second) if second is not None else (0, first or 0)
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def pair_questions(asked: Sequence[str], times: Sequence[str]) -> list[Question]:
    """Pair the first question with the first time and so on; those without one are for the end.

    Raises
    ------
    ValueError
        If a question is empty, a time cannot be read, or there are more times than questions.
    """
    if len(times) > len(asked):
        raise ValueError(
            f"--at belongs to the --ask of the same rank: got {len(times)} times for "
            f"{len(asked)} questions"
        )
    for text in asked:
        if not text.strip():
            raise ValueError("--ask must be a question, got an empty text")
    at = [parse_time(text) for text in times] + [math.inf] * (len(asked) - len(times))
    questions = [Question(text, time) for text, time in zip(asked, at, strict=True)]
    return sorted(questions, key=lambda question: question.time)


class Interview:
    """Asks a session the questions that are due, and writes down the answers.

    Parameters
    ----------
    chat
        The model; its tower is used by whoever hands the tokens over.
    questions
        In the order of their times.
    retrieve_tokens, max_new_tokens
        How many tokens of the video an answer is given from, and how long it may be.

    Attributes
    ----------
    answers
        So far.
    """

    def __init__(
        self,
        chat: ChatModel,
        questions: Sequence[Question],
        *,
        retrieve_tokens: int,
        max_new_tokens: int,
    ) -> None:
        from stc_video import StreamingSession

        self.answers: list[AnswerRecord] = []
        self._chat = chat
        self._due = list(questions)
        self._max_new_tokens = max_new_tokens
        self._last = 0.0
        memory = RekvConfig(retrieve_tokens=retrieve_tokens)
        chat.check_memory(memory)
        # Cacher and pruner belong to the run, which measures them.
        self._session = StreamingSession(
            chat.model,
            chat.processor,
            memory=memory,
            cache=None,
            prune="none",
        )

    def take(self, kept: Any, time: float, grid: tuple[int, int]) -> None:
        """Let the kept tokens of the next frame, of a grid, into the memory."""
        self._session.push_tokens(kept, time, grid)
        self._last = time

    def ask_before(self, time: float) -> None:
        """Answer the questions that come before a frame of this time."""
        while self._due and self._due[0].time < time:
            self._ask(self._due.pop(0).text)

    def finish(self) -> None:
        """Answer the questions that are left."""
        self.ask_before(math.inf)
        while self._due:
            self._ask(self._due.pop(0).text)

    def close(self) -> None:
        """Free the memory and restore the model."""
        self._session.close()

    def _ask(self, text: str) -> None:
        from stc_video.session.streaming import AnswerStream

        stream = AnswerStream(self._chat.processor.tokenizer)
        answer = self._session.ask(text, max_new_tokens=self._max_new_tokens, **stream.settings)
        config: Any = self._chat.model.config
        retrieved = tuple(
            RetrievedFrame(frame.number, float(frame.time or 0.0), frame.layers)
            for frame in answer.retrieved or ()
        )
        self.answers.append(
            AnswerRecord(
                question=text,
                answer=answer.text,
                time=self._last,
                frames=answer.frame,
                retrieved=retrieved,
                layers=int(config.get_text_config().num_hidden_layers),
                context_tokens=answer.context_tokens,
                tokens=len(answer.ids),
                seconds={**answer.seconds, "first_token": stream.first_token},
            )
        )
