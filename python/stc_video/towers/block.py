# SPDX-License-Identifier: Apache-2.0
"""What the cacher asks of a vision tower and of its transformer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Block", "Tower"]


class Block(Protocol):
    """One transformer block, by its parts.

    Shapes: B frames, N tokens of a frame, K of them, C channels. ``places`` (B, K) int32 are the
    places of the K tokens in the frame, None if they are all N in order; blocks with positions of
    their own (RoPE) or with windows need them.
    """

    @property
    def layer(self) -> nn.Module:
        """The module."""

    @property
    def parts(self) -> Sequence[nn.Module]:
        """What is called of it."""

    @property
    def norm1(self) -> nn.Module:
        """What normalises the input of the attention."""

    @property
    def mlp(self) -> nn.Module:
        """What does the same to each row."""

    @property
    def channels(self) -> int:
        """Width of the residual stream, C."""

    @property
    def returns_tuple(self) -> bool:
        """Whether this release's class wraps its output in a tuple."""

    def project(
        self, normed: Tensor, places: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values (B, K, C) of normalised rows (B, K, C)."""

    def project_query(self, normed: Tensor, places: Tensor | None = None) -> Tensor:
        """Queries alone."""

    def project_key(self, normed: Tensor, places: Tensor | None = None) -> Tensor:
        """Keys alone."""

    def project_value(self, normed: Tensor, places: Tensor | None = None) -> Tensor:
        """Values alone."""

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Attention branch of queries (B, K, C) over keys and values (B, N, C): (B, K, C)."""

    def mix(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        places: Tensor | None = None,
    ) -> Tensor:
        """Values mixed by attention: ``attend`` in front of the output projection."""

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""

    def feed_forward(self, x: Tensor) -> Tensor:
        """MLP branch of rows (B, K, C) of the residual stream."""

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""


class Tower(Protocol):
    """A vision tower and its blocks."""

    @property
    def root(self) -> nn.Module:
        """The module that calls the blocks."""

    @property
    def ancestors(self) -> Sequence[nn.Module]:
        """``root`` and the modules between it and the blocks, outermost first."""

    @property
    def blocks(self) -> Sequence[Block]:
        """The transformer blocks, in order."""

    @property
    def prefix_tokens(self) -> int:
        """Class token and registers at the start of the sequence."""
