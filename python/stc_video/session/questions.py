# SPDX-License-Identifier: Apache-2.0
"""Questions on their way out of the memory: prompted, given a context, and answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from stc_video.memory import Context, MemoryChangedError, Reading
from stc_video.session.answer import Answer, AnswerSettings, generate_answer, next_logits
from stc_video.session.intake import Intake
from stc_video.session.parts import SessionParts
from stc_video.session.prompt import Prompt
from stc_video.session.stopping import StopStrings, first_stop


class Evidence(NamedTuple):
    """The context that a question is answered from.

    Attributes
    ----------
    context
        Keys and values.
    frames
        How many frames had been pushed.
    seconds
        How long the retrieval took.
    """

    context: Context
    frames: int
    seconds: float


class Questions:
    """Answers the questions of a session from its memory, which stays as it is.

    Frames that wait for their chunk go into the memory before a question.
    """

    def __init__(self, parts: SessionParts, intake: Intake) -> None:
        self._parts = parts
        self._model = parts.handle.model
        self._template = parts.template
        self._adapter = parts.adapter
        self._intake = intake

    def begin(self) -> None:
        """Put what comes before the video into the memory."""
        with torch.no_grad():
            self._parts.memory.begin(self._embed(self._template.prefix))

    def prompt(self, turns: Sequence[tuple[str, str]], question: str) -> Prompt:
        """Write a question behind earlier turns; raises ValueError if it is empty."""
        if not isinstance(question, str) or not question.strip():
            raise ValueError(f"ask: the question must be a text, got {question!r}")
        prompt = self._template.prompt(turns, question)
        if self._adapter.ending() is None:
            return prompt
        # What ends every video comes with the question, as the video goes on.
        rows = slice(prompt.question.start + 1, prompt.question.stop + 1)
        return Prompt([self._template.video_token, *prompt.ids], rows)

    def context(self, prompt: Prompt, question: str, check: Callable[[], None]) -> Evidence:
        """Look up what a question needs, while frames go on into the memory.

        Parameters
        ----------
        prompt, question
            The question.
        check
            Called between pieces of the prompt; what it raises ends the question.

        Raises
        ------
        ValueError
            If there is nothing to look at.
        """
        try:
            return self._context(prompt, question, check)
        except MemoryChangedError:  # it has forgotten almost all that there was meanwhile
            with self._parts.lock:
                return self._context(prompt, question, check)

    def _context(self, prompt: Prompt, question: str, check: Callable[[], None]) -> Evidence:
        with torch.no_grad():
            with self._parts.lock:
                check()
                self._parts.check_model()
                frames = self._intake.frames
                if self._intake.is_empty:
                    raise ValueError(
                        f"ask: the memory took none of the {frames} frames that were pushed, so "
                        "there is nothing to ask about"
                        if frames
                        else "ask: no frame has been pushed yet, so there is nothing to ask about"
                    )
                self._intake.flush()
                ending = self._adapter.ending()
            with self._parts.timer("retrieve"):
                embeds = self._embed(prompt.ids)
                if ending is not None:
                    embeds[0] = ending
                reading = Reading(self._parts.lock, check)
                context = self._parts.memory.context(embeds, prompt.question, question, reading)
        self._adapter.before_answer(context.cache)
        return Evidence(context, frames, self._parts.timer.last("retrieve"))

    def answer(
        self,
        evidence: Evidence,
        prompt: Prompt,
        streamer: Any,
        stop: Sequence[str],
        settings: AnswerSettings,
    ) -> Answer:
        """Generate from what :meth:`context` returned; no lock is needed."""
        context, tokenizer = evidence.context, self._template.tokenizer
        arguments = dict(settings.arguments)
        if stop:
            stopping = StopStrings(tokenizer, stop, context.tokens + 1)
            criteria = arguments.get("stopping_criteria") or ()
            arguments["stopping_criteria"] = StoppingCriteriaList([*criteria, stopping])
        with self._parts.timer("generate"):
            ids = generate_answer(
                self._model, context, prompt.ids, self._template.video_token, streamer, arguments
            )
        text = tokenizer.decode(ids, skip_special_tokens=True)
        end = first_stop(text, stop)
        ended = end is not None or _ends(ids, settings.config)
        return Answer(
            text=text[:end].strip(),
            ids=ids,
            frame=evidence.frames,
            retrieved=context.retrieved,
            context_tokens=context.tokens + 1,
            seconds={"retrieve": evidence.seconds, "generate": self._parts.timer.last("generate")},
            finish_reason="stop" if ended else "length",
        )

    def logits(self, evidence: Evidence, prompt: Prompt) -> Tensor:
        """Logits (V,) of the first token of the answer."""
        return next_logits(self._model, evidence.context, prompt.ids)

    def _embed(self, ids: list[int]) -> Tensor:
        embed = self._model.get_input_embeddings()
        tokens = torch.tensor(ids, dtype=torch.long, device=self._model.device)
        embedded: Tensor = embed(tokens)
        return embedded


def _ends(ids: Tensor, config: Any) -> bool:
    """Whether an answer ended by itself: before it had to, or with its last token."""
    ends = torch.as_tensor([] if config.eos_token_id is None else config.eos_token_id).flatten()
    early = len(ids) < config.max_new_tokens and config.max_time is None
    return early or int(ids[-1]) in ends.tolist()
