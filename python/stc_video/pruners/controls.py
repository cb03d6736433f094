# SPDX-License-Identifier: Apache-2.0
"""Controls: choices that do not look at the features. A method that does not beat them is none."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_video.pruners.base import Chosen, Frames, Pruner
from stc_video.pruners.budget import Budget, highest


class UniformPruner(Pruner):
    """Keep evenly spaced tokens, the same indices in every frame. Exact count.

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
        indices = ((2 * step + 1) * tokens).div(2 * count, rounding_mode="floor").int()
        return indices.expand(len(features), count).contiguous(), None, {}


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
        self._streams: dict[str, Tensor] = {}

    def _choose(self, frames: Frames) -> Chosen:
        count, tokens = frames.features.shape[:2]
        device = frames.features.device
        kept = self.budget.count(tokens)
        seen = self._streams.get(frames.stream)
        if seen is None or seen.device != device:
            # An inference tensor could later not be written to outside of inference mode.
            with torch.inference_mode(False):
                seen = torch.zeros((), dtype=torch.int64, device=device)
            self._streams[frames.stream] = seen
        frame = (torch.arange(count, device=device) + seen)[:, None]
        seen.add_(count)
        scores = _noise(self.seed, frame, torch.arange(tokens, device=device))
        return highest(scores, kept), scores, {}


def _noise(seed: int, frame: Tensor, place: Tensor) -> Tensor:
    """Numbers in [0, 1) that look random, the same ones on every device, (F, N) float32."""
    offset = (seed * 0xC2B2AE3D) & 0xFFFFFFFF
    bits = (frame * 0x9E3779B1 + place * 0x85EBCA77 + offset) & 0xFFFFFFFF
    for _ in range(2):
        # Multiply and xor-shift, in 59 of the 63 bits.
        bits = ((bits ^ (bits >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((bits ^ (bits >> 16)) >> 8).float() / 2.0**24
