# SPDX-License-Identifier: Apache-2.0
"""`StreamingSession`: push frames, ask questions, at any time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stc_video.acceleration import borrow
from stc_video.checks import check_count
from stc_video.config import CacheConfig
from stc_video.errors import AnswerStoppedError
from stc_video.memory import MemoryConfig, make_memory, memory_config
from stc_video.models.pictures import FrameLike, TimeLike, to_times
from stc_video.pruners import PrunedTokens, Pruner
from stc_video.session.answer import Answer, answer_settings
from stc_video.session.check import check_memory
from stc_video.session.intake import Intake
from stc_video.session.parts import SessionParts
from stc_video.session.prompt import Prompt, PromptTemplate
from stc_video.session.pushed import PushedFrame
from stc_video.session.questions import Evidence, Questions
from stc_video.session.saving import Saver, read_save_of
from stc_video.session.stats import SessionStats, StageTimer
from stc_video.session.stopping import checked_stop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NUMBERS = itertools.count()


class StreamingSession:
    """A live stream that can be asked at any moment, for hours, in bounded memory.

    One thread may push while others ask. Sessions on one model that push from threads of their
    own share calls of its tower.

    Parameters
    ----------
    model
        A whole model of a family with sessions, of those that ``stc models`` lists, in eval mode.
        If it is not accelerated yet, it is until the last session on it is closed. For Qwen-VL two
        pictures are a frame.
    processor
        The model's processor, or its tokenizer; it must have a chat template.
    memory
        ``"rekv"``: bounded, with retrieval; ``"plain"``: everything, up to a limit;
        ``"window"``: the last four frames and nothing else; or a :class:`RekvConfig`,
        :class:`PlainConfig` or :class:`WindowConfig`.
    cache, prune, tokens_per_frame, positions
        As for :func:`accelerate`; not used for a model that is accelerated already.
    prefill_chunk
        How many frames go through the language model together. A frame waits until there are so
        many, or until a question or a save; the answers do not depend on it, up to rounding.

    Attributes
    ----------
    tokenizer
        The model's tokenizer.

    Raises
    ------
    UnsupportedModelError
        If the model is none of the supported ones; it is left untouched.
    ValueError
        If a setting is out of range, or there is no usable chat template.

    Examples
    --------
    >>> session = stc_video.StreamingSession(model, processor)  # doctest: +SKIP
    >>> session.push(frame)  # doctest: +SKIP
    >>> print(session.ask("what did he put on the table?"))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        *,
        memory: str | MemoryConfig = "rekv",
        cache: str | CacheConfig | None = "motion",
        prune: str | Pruner = "stc",
        tokens_per_frame: int | None = 64,
        positions: str | None = None,
        prefill_chunk: int = 8,
    ) -> None:
        check_count("StreamingSession: prefill_chunk", prefill_chunk, 1)
        config = memory_config(memory)
        self._name = f"session-{next(_NUMBERS)}"
        self._handle = borrow(model, cache, prune, tokens_per_frame, positions=positions)
        self._open = True
        self._push_lock = threading.Lock()
        self._memory_lock = threading.RLock()
        try:
            family = self._handle.adapter
            self._adapter = family.session_adapter(processor)
            template = PromptTemplate(processor, family.placeholder, self._adapter)
            check_memory(self._handle, config)
            self._memory = make_memory(family.language_model, config)
        except BaseException:
            self.close()
            raise
        self._parts = parts = SessionParts(
            self._name, self._handle, self._adapter, template, self._memory, config,
            self._memory_lock, prefill_chunk, StageTimer(model.device), (model.dtype, model.device),
        )  # fmt: skip
        self.tokenizer: Any = template.tokenizer
        self._intake = Intake(parts)
        self._saver = Saver(parts, self._intake)
        self._questions = Questions(parts, self._intake)
        self._start_over()

    def __repr__(self) -> str:
        memory = type(self._memory).__name__
        return f"<StreamingSession {self._name}, {self._intake.frames} frames, {memory}>"

    def __enter__(self) -> StreamingSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to ask about: no frame came in yet, nor a picture of one."""
        return self._intake.is_empty and not self._adapter.is_incomplete

    def push(self, frames: FrameLike, timestamps: TimeLike = None) -> list[PushedFrame]:
        """Take in the next frames of the stream.

        Parameters
        ----------
        frames
            One frame or several: PIL images; PyAV frames; NumPy arrays (H, W), (H, W, C) or
            (F, H, W, C); tensors (H, W), (C, H, W) or (F, C, H, W); sequences of these; or a float
            tensor (F, 3, S, S) of prepared pixels of the tower's size. C is 1 (grey), 3 (RGB) or 4
            (RGB with alpha, which is left out); values are uint8, uint16 (0 to 65535), bool, or
            float from 0 to 1.
        timestamps
            When they were taken, in seconds, as numbers of any type: one for each, or one for a
            single frame. Times that go back are kept as they are, counted and warned of once.

        Returns
        -------
        list of PushedFrame
            A report on each: which of its tokens were encoded again, and which were kept.

        Raises
        ------
        TypeError, ValueError
            If a frame is none of these, or a timestamp no finite number; none of the frames is
            taken then.
        MemoryFullError
            If the memory is full and may not forget; the frames that are left out are counted.
        """
        with self._push_lock:
            self._check_open()
            with self._parts.timer("decode"):
                pixels, times = self._adapter.prepare(frames, timestamps)
            return [] if pixels is None else self._intake.encode(pixels, times)

    def push_tokens(
        self,
        kept: PrunedTokens,
        timestamps: TimeLike = None,
        grid: tuple[int, int] | None = None,
    ) -> None:
        """Take in the next frames of the stream, encoded and pruned elsewhere.

        Parameters
        ----------
        kept
            Tokens (F, K, D) as the language model is given them, and their places; behind each
            token what deepstack adds to the first layers (Qwen3-VL).
        timestamps
            As for :meth:`push`, which also says what is raised.
        grid
            Rows and columns of the places, where each video has its own (Qwen-VL).
        """
        model, grid = self._handle.model, grid or self._handle.grid
        if grid is None:
            raise ValueError(f"push_tokens: {type(model).__name__} needs a grid (H, W), got none")
        times = to_times(timestamps, len(kept.tokens))
        with self._push_lock:
            self._check_open()
            self._intake.take(kept, grid, times)

    def flush(self) -> None:
        """Let frames that wait for their prefill chunk into the memory now.

        Of a picture that waits for a second one (Qwen-VL) a frame is made.
        """
        self._complete()
        with self._memory_lock:
            self._intake.flush()

    def ask(
        self,
        question: str,
        *,
        dialogue: bool = False,
        history: Sequence[tuple[str, str]] = (),
        streamer: Any = None,
        stop: str | Sequence[str] = (),
        stopped: Callable[[], bool] = lambda: False,
        **settings: Any,
    ) -> Answer:
        """Answer a question about what was seen so far.

        The memory stays as it is: questions do not influence each other.

        Parameters
        ----------
        question
            The question.
        dialogue
            Keep the question and its answer as a turn, which later questions with
            ``dialogue=True`` get to see.
        history
            Earlier questions and their answers, if the caller keeps them.
        streamer
            A streamer of transformers, which gets the tokens as they are made.
        stop
            Texts; the answer ends before the first of them. An :class:`AnswerStream` that is given
            them holds them back; its ``settings`` have them then.
        stopped
            Whether the question is no longer wanted; asked between pieces of a long one, before
            the first token.
        **settings
            For ``generate``, such as ``max_new_tokens`` (256) or ``do_sample``.

        Returns
        -------
        Answer
            Its ``text``, and where it comes from.

        Raises
        ------
        ValueError
            If the question or a stop string is empty, no frame came in yet, a setting cannot be, or
            a text has a special token of the model, which would end a turn or begin another.
        MemoryFullError
            If the memory is full and frames still waited; they are counted, as for :meth:`push`.
        AnswerStoppedError
            If it was ``stopped`` before the first token.
        """

        def check() -> None:
            self._check_open()
            if stopped():
                raise AnswerStoppedError("ask: the question was stopped")

        self._check_open()
        stop, made = checked_stop(stop), answer_settings(self._handle.model, settings)
        said = self._turns  # a reset begins another list
        turns = [*history, *(said if dialogue else ())]
        prompt, evidence = self._look_up(turns, question, check)
        answer = self._questions.answer(evidence, prompt, streamer, stop, made)
        if dialogue:
            with self._memory_lock:
                said.append((question, answer.text))
        return answer

    def question_tokens(self, question: str, *, history: Sequence[tuple[str, str]] = ()) -> int:
        """Number of tokens that a question adds, with its earlier turns; nothing is computed.

        Raises
        ------
        ValueError
            As for :meth:`ask`.
        """
        return len(self._questions.prompt(history, question).ids)

    def logits(self, question: str) -> Tensor:
        """Logits (V,) of the first token of the answer, to choose among given options."""
        self._check_open()
        prompt, evidence = self._look_up((), question, self._check_open)
        return self._questions.logits(evidence, prompt)

    def reset(self) -> None:
        """Forget the stream; the next frame begins a new one."""
        with self._push_lock, self._memory_lock:
            self._handle.forget(self._name)
            self._start_over()

    def close(self) -> None:
        """Forget the stream, and restore the model if no other session needs it."""
        with self._push_lock, self._memory_lock:
            if not self._open:
                return
            self._open = False
            if hasattr(self, "_memory"):
                self._memory.clear()
            if hasattr(self, "_saver"):
                self._saver.close()
            self._handle.forget(self._name)
        self._handle.give_back()

    def stats(self) -> SessionStats:
        """Return totals, times per stage, and bytes of every store."""
        with self._memory_lock:
            return SessionStats.of(self._parts, self._intake)

    def save(self, path: str | Path) -> None:
        """Save the whole state of the stream into a folder.

        The folder always holds a whole save: the one before until this one is complete. Frames
        that it has already are not written again. From then on no other session may save into it,
        until this one is closed or saves into another folder.

        Raises
        ------
        FolderInUseError
            If another process, or another session, saves into the folder.
        """
        self._complete()
        with self._push_lock, self._memory_lock:
            self._check_open()
            self._saver.save(Path(path), self._turns)

    @classmethod
    def load(
        cls, path: str | Path, model: PreTrainedModel, processor: Any, **settings: Any
    ) -> StreamingSession:
        """Go on with a saved stream, bit for bit.

        Parameters
        ----------
        path
            The folder.
        model, processor
            As they were.
        **settings
            The settings that the session was made with.

        Returns
        -------
        StreamingSession
            A new session in the saved state.

        Raises
        ------
        FileNotFoundError
            If there is no save.
        ValueError
            If it was made with another model or other settings, or is not what was written
            (:class:`DamagedSaveError`).
        """
        snapshot = read_save_of(Path(path), model)
        session = cls(model, processor, **settings)
        try:
            session._turns = session._saver.restore(Path(path), snapshot)
        except BaseException:
            session.close()
            raise
        return session

    def _start_over(self) -> None:
        self._turns: list[tuple[str, str]] = []
        self._saver.begin()
        self._intake.clear()
        self._adapter.restore(None)
        self._questions.begin()

    def _look_up(
        self, turns: Sequence[tuple[str, str]], question: str, check: Callable[[], None]
    ) -> tuple[Prompt, Evidence]:
        """Write a question behind earlier turns, and look up what it needs."""
        prompt = self._questions.prompt(turns, question)
        self._complete()
        return prompt, self._questions.context(prompt, question, check)

    def _check_open(self) -> None:
        if not self._open:
            raise ValueError("StreamingSession: the session is closed")

    def _complete(self) -> None:
        """Take in a frame of a picture that waits for a second one."""
        if not self._adapter.is_incomplete:  # a question need not wait for a push
            return
        with self._push_lock:
            waiting = self._adapter.complete()
            if waiting is not None:
                self._intake.encode(*waiting)
