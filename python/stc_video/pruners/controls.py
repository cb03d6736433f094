# SPDX-License-Identifier: Apache-2.0
"""Controls: choices that do not look at the features. A method that does not beat them is none."""

from __future__ import annotations

import torch

from stc_video.pruners.base import Chosen, Frames, Pruner
from stc_video.pruners.budget import Budget, highest


class UniformPruner(Pruner):
    """Keep evenly spaced tokens, the same places in every frame. Exact count.

    Parameters
    ----------
    tokens_per_frame, retention_ratio, video_pruning_rate
        How many, in one of three ways; see :class:`stc_video.pruners.budget.Budget`. 64 if none
        is given.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
    ) -> None:
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate, otherwise=64)

    def _choose(self, frames: Frames) -> Chosen:
        features = frames.features
        tokens = features.shape[1]
        count = self.budget.count(tokens)
        # The middle of each of `count` equal stretches.
        step = torch.arange(count, dtype=torch.int64, device=features.device)
        places = ((2 * step + 1) * tokens).div(2 * count, rounding_mode="floor").int()
        return places.expand(len(features), count).contiguous(), None, {}


class RandomPruner(Pruner):
    """Keep random tokens, others in each frame. Exact count.

    A frame's choice depends on the seed and on its number in the stream alone, so it is the same
    on every device and however the stream is cut into calls.

    Parameters
    ----------
    tokens_per_frame, retention_ratio, video_pruning_rate
        As for :class:`UniformPruner`.
    seed
        Of the choice.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        seed: int = 0,
    ) -> None:
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate, otherwise=64)
        self.seed = seed
        self._streams: dict[str, int] = {}

    def _choose(self, frames: Frames) -> Chosen:
        count, tokens = frames.features.shape[:2]
        kept = self.budget.count(tokens)
        first = self._streams.get(frames.stream, 0)
        self._streams[frames.stream] = first + count
        scores = torch.empty((count, tokens))
        for row in range(count):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first + row)
            scores[row] = torch.rand(tokens, generator=generator)
        scores = scores.to(frames.features.device)
        return highest(scores, kept), scores, {}

    def reset(self, stream: str | None = None) -> None:
        """Start one stream, or all, again from its first frame."""
        if stream is None:
            self._streams.clear()
        else:
            self._streams.pop(stream, None)
