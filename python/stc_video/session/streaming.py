# SPDX-License-Identifier: Apache-2.0
"""The text of an answer while it is made, and a way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from stc_video.session.stopping import checked_stop, first_stop, settled


class AnswerStream(BaseStreamer):
    """A streamer for :meth:`StreamingSession.ask` that hands on text, and can stop the answer.

    ``session.ask(question, **stream.settings)`` uses it.

    Parameters
    ----------
    tokenizer
        The model's.
    on_text
        Called with each piece of text, in the thread that generates.
    stop
        Texts; the answer ends before the first of them. Text that may become one is held back.
    """

    def __init__(
        self,
        tokenizer: Any,
        on_text: Callable[[str], None] = lambda text: None,
        stop: str | Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._on_text = on_text
        self._strings = checked_stop(stop)
        self._stop = threading.Event()
        self._begin = time.perf_counter()
        self._ids: list[int] | None = None
        self._shown = 0
        #: seconds from the making of this object to the first token; 0 until then
        self.first_token = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments for `ask`."""
        criteria = StoppingCriteriaList([_When(self._stop)])
        return {
            "streamer": self,
            "stopping_criteria": criteria,
            "stop": self._strings,
            "stopped": self._stop.is_set,
        }

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End the answer with its next token."""
        self._stop.set()

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token by token."""
        if self._ids is None:
            self._ids = []
            return
        if not self._ids:
            self.first_token = time.perf_counter() - self._begin
        self._ids += value.flatten().tolist()
        self._show(settled(self._text(), self._strings))

    def end(self) -> None:
        """Hand on what was held back."""
        self._show(self._text())
        self._ids, self._shown = None, 0

    def _text(self) -> str:
        """The text so far, up to a stop string."""
        text: str = self._tokenizer.decode(self._ids or [], skip_special_tokens=True)
        return text[: first_stop(text, self._strings)]

    def _show(self, text: str) -> None:
        if len(text) > self._shown:
            piece, self._shown = text[self._shown :], len(text)
            self._on_text(piece)


class _When(StoppingCriteria):
    """Stops when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        stop = self._event.is_set()
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)
