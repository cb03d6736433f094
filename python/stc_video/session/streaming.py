# SPDX-License-Identifier: Apache-2.0
"""The text of an answer while it is made, and a way to stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

__all__ = ["AnswerStream"]


class AnswerStream(TextStreamer):
    """A streamer for :meth:`StreamingSession.ask` that hands on text, and can stop the answer.

    ``session.ask(question, **stream.settings)`` uses it.

    Parameters
    ----------
    tokenizer
        The model's.
    on_text
        Called with each piece of text, in the thread that generates.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None] = lambda text: None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._on_text = on_text
        self._stop = threading.Event()
        self._begin = time.perf_counter()
        self._calls = 0
        #: seconds from the making of this object to the first token; 0 until then
        self.first_token = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        """What `ask` must be given."""
        return {"streamer": self, "stopping_criteria": StoppingCriteriaList([_When(self._stop)])}

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def stop(self) -> None:
        """End the answer with its next token."""
        self._stop.set()

    def put(self, value: Tensor) -> None:
        """Take the prompt, then token by token."""
        self._calls += 1
        if self._calls == 2:
            self.first_token = time.perf_counter() - self._begin
        untyped: Any = super()
        untyped.put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on a piece of text that no later token changes."""
        if text:
            self._on_text(text)


class _When(StoppingCriteria):
    """Stops when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        stop = self._event.is_set()
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)
