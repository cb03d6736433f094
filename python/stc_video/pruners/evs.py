# SPDX-License-Identifier: Apache-2.0
"""Efficient Video Sampling (arXiv 2510.14624): keep what differs most from the frame before."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from stc_video.checks import check_choice
from stc_video.pruners.base import Chosen, Frames
from stc_video.pruners.budget import ranks
from stc_video.pruners.novelty import (
    NoveltyPruner,
    NoveltySettings,
    StreamState,
    change_from_previous,
)

SCOPES = ("frame", "clip")


class EvsPruner(NoveltyPruner):
    """Keep the tokens of highest 1 - cosine to the same place one frame earlier. Exact count.

    ``scope="clip"`` is what vLLM does: each call is one whole clip, its first frame is kept whole,
    and the rest of the clip's tokens, a number known from the shape alone, goes where the change
    is. It reads later frames, a still clip is reduced to its first frame, and a long one may have
    frames without any token. ``scope="frame"`` is its causal form: the same number of each frame.

    Parameters
    ----------
    scope
        ``"frame"`` or ``"clip"``.
    **settings
        See :class:`NoveltyPruner`; ``retention_ratio`` is 0.25 if nothing is given. ``window``
        spends the number over several frames where the change is.
    """

    by_change_alone = True
    default_ratio = 0.25

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        scope: str = "frame",
        **settings: Unpack[NoveltySettings],
    ) -> None:
        super().__init__(tokens_per_frame, **settings)
        check_choice("make_pruner: scope", scope, SCOPES)
        if scope == "clip" and (self.window is not None or self.floor):
            raise ValueError("make_pruner: window and floor do not go with scope='clip'")
        self.scope = scope
        self.causal = scope == "frame"

    def tokens_kept(self, tokens: int) -> int:
        """Return how many of a frame's tokens are kept; see :meth:`Pruner.tokens_kept`."""
        if self.scope == "clip":
            raise ValueError("EvsPruner: scope='clip' keeps another number of each frame")
        return super().tokens_kept(tokens)

    def _novelty(
        self, frames: Frames, state: StreamState
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        change = change_from_previous(frames.features, state)
        return change, torch.ones_like(change, dtype=torch.bool), {"change": change}

    def _choose(self, frames: Frames) -> Chosen:
        if self.scope == "frame":
            return super()._choose(frames)
        count, tokens = frames.features.shape[:2]
        state = StreamState.on(frames.features.device, tokens)
        change = change_from_previous(frames.features, state)
        budget = self.budget.clip_count(count, tokens) if count else 0
        keep = (ranks(change.reshape(1, -1)) < budget).view(count, tokens)
        return keep, change, {"change": change} if self.trace else {}
