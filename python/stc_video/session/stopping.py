# SPDX-License-Identifier: Apache-2.0
"""Stop strings: an answer ends before the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

# What a decoder writes for bytes that are no character, or not yet a whole one.
_INCOMPLETE = "\ufffd"


def checked_stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return stop strings as a tuple.

    Raises
    ------
    ValueError
        If one is empty or no text.
    """
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    for string in strings:
        if not isinstance(string, str) or not string:
            raise ValueError(f"stop must be texts of at least one character, got {string!r}")
    return strings


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Find where the stop string begins that is complete first; None if there is none.

    What is complete first does not depend on how the text is cut into tokens.
    """
    starts = [(text.find(string), string) for string in stop]
    ends = [(start + len(string), start) for start, string in starts if start >= 0]
    return min(ends)[1] if ends else None


def settled(text: str, stop: Sequence[str]) -> str:
    """The part of an unfinished text that can be shown: what follows changes nothing in it.

    A character of which bytes are missing is left out, and an end that may become a stop string.
    """
    text = text.rstrip(_INCOMPLETE)
    held = max((_overlap(text, string) for string in stop), default=0)
    return text[: len(text) - held]


def _overlap(text: str, string: str) -> int:
    """Count the characters at the end of a text with which a string begins."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


class StopStrings(StoppingCriteria):
    """Ends `generate` with the token that completes a stop string.

    Parameters
    ----------
    tokenizer
        The model's.
    stop
        The strings.
    prompt_tokens
        How many tokens the prompt has: a stop string in the question ends nothing.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_tokens: int) -> None:
        self._tokenizer, self._stop, self._prompt_tokens = tokenizer, stop, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether the answer is complete, as a tensor (1,)."""
        answer = input_ids[0, self._prompt_tokens :]
        text = self._tokenizer.decode(answer, skip_special_tokens=True).rstrip(_INCOMPLETE)
        done = first_stop(text, self._stop) is not None
        return torch.full((1,), done, dtype=torch.bool, device=input_ids.device)
