# SPDX-License-Identifier: Apache-2.0
"""Conversations: the full prompts behind a cache that was filled with pruned ones.

It is kept on the cache itself, so that a copy of the cache has it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_stc_conversation"


@dataclass(frozen=True, eq=False)
class ConversationStream:
    """The stream that all videos of a conversation are of; it lives as long as that does."""

    name: str

    def __deepcopy__(self, _: Any) -> ConversationStream:
        # Copies of a cache go on with one stream, which ends with the last of them.
        return self


@dataclass(frozen=True, eq=False)
class Conversation:
    """The full prompt behind the tokens in a cache.

    Attributes
    ----------
    kept
        (B, L) bool, which tokens of the full conversation so far stayed.
    mask
        (B, n) bool, which tokens in the cache are no padding.
    offset
        (B,) what to add to the number of tokens in the cache for the position of the next one.
    pictures
        What the family of models remembers of the pictures so far.
    stream
        The stream that the videos are of, if they all are of one.
    """

    kept: Tensor
    mask: Tensor
    offset: Tensor
    pictures: Any = None
    stream: ConversationStream | None = None

    @classmethod
    def empty(cls, batch: int, pictures: Any) -> Conversation:
        """Nothing has been said."""
        none = torch.empty((batch, 0), dtype=torch.bool)
        return cls(none, none, torch.zeros(batch, dtype=torch.int64), pictures)

    @property
    def removed(self) -> int:
        """Number of tokens by which the longest row is shorter than the full one."""
        return self.kept.shape[1] - self.mask.shape[1]


def conversation_of(cache: Any) -> Conversation | None:
    """Return what is known of a cache with tokens; one that was emptied begins anew."""
    history: Conversation | None = getattr(cache, _ATTRIBUTE, None)
    if history is None or tokens_in(cache):
        return history
    delattr(cache, _ATTRIBUTE)
    return None


def remember(cache: Any, history: Conversation) -> None:
    """Keep with a cache what is known of it."""
    if cache is not None and getattr(cache, _ATTRIBUTE, None) is not history:
        setattr(cache, _ATTRIBUTE, history)


def check_whole(history: Conversation, past: int) -> None:
    """Refuse a cache from which a part of the last prompt was taken out."""
    if past < history.mask.shape[1]:
        raise ValueError(
            f"accelerated model: the cache must hold the {history.mask.shape[1]} tokens of the "
            f"last prompt, got {past}"
        )


def tokens_in(cache: Any) -> int:
    """Return how many tokens a cache holds; None holds none."""
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise ValueError(
            "accelerated model: the cache must be one of transformers' Cache objects, got "
            f"{type(cache).__name__}"
        )
    return int(cache.get_seq_length())
