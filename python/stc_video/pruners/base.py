# SPDX-License-Identifier: Apache-2.0
"""The interface of all pruners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stc_kernels import gather_rows

DEFAULT_STREAM = "default"


@dataclass(frozen=True)
class PrunedTokens:
    """The tokens that were kept of some frames.

    Attributes
    ----------
    tokens
        (F, K, D) kept tokens, in the order of the frame; zeros where a frame kept fewer than K.
    indices
        (F, K) int32 places in the frame, ascending, padded at the end with -1.
    counts
        (F,) int32 how many were kept of each frame.
    scores
        (F, N) float32 by which they were chosen, higher is kept; None if nothing was scored.
    """

    tokens: Tensor
    indices: Tensor
    counts: Tensor
    scores: Tensor | None = None

    def packed(self) -> Tensor:
        """Return all kept tokens in one row, (sum of counts, D): what a language model is fed."""
        return self.tokens[self.indices >= 0]


class Pruner(ABC):
    """Chooses the tokens of each frame that enter the language model.

    Attributes
    ----------
    exact
        Whether the number kept is known before the features are (vLLM and ReKV need that).
    """

    exact: bool = True

    def __call__(
        self,
        features: Tensor,
        grid: tuple[int, int] | None = None,
        stream: str = DEFAULT_STREAM,
    ) -> PrunedTokens:
        """Choose tokens.

        Parameters
        ----------
        features
            (F, N, D) tokens of consecutive frames of one stream, in raster order, after the
            projector; float32, float16 or bfloat16.
        grid
            (H, W) with H * W = N. Pruners that compare neighbours need it.
        stream
            Name of the stream, for pruners that remember earlier frames.

        Returns
        -------
        PrunedTokens
            The kept tokens, their places and how many they are.

        Raises
        ------
        ValueError
            If the shape does not fit the grid or the settings.
        """
        if features.dim() != 3:
            raise ValueError(
                "pruner: features must have 3 dimensions (frames, tokens, channels), "
                f"got shape {tuple(features.shape)}"
            )
        if grid is not None and grid[0] * grid[1] != features.shape[1]:
            raise ValueError(
                f"pruner: grid must have {features.shape[1]} places (tokens), "
                f"got {grid[0]}x{grid[1]}"
            )
        with torch.no_grad():
            indices, scores = self._choose(features, grid, stream)
            kept = gather_rows(features, indices)
        counts = (indices >= 0).sum(1, dtype=torch.int32)
        return PrunedTokens(kept, indices, counts, scores)

    @abstractmethod
    def _choose(
        self, features: Tensor, grid: tuple[int, int] | None, stream: str
    ) -> tuple[Tensor, Tensor | None]:
        """Return indices (F, K) int32, ascending and padded with -1, and scores (F, N) or None."""

    def reset(self, stream: str | None = None) -> None:
        """Forget the frames of one stream, or of all. Without memory there is nothing to do."""
        return

    def stream_state(self, stream: str) -> Any:
        """What is remembered of a stream, to be saved with it; None if nothing is."""
        return getattr(self, "_streams", {}).get(stream)

    def restore_stream(self, stream: str, state: Any) -> None:
        """Take over what :meth:`stream_state` returned."""
        streams: dict[str, Any] = getattr(self, "_streams", {})
        streams[stream] = state

    @property
    def state_bytes(self) -> int:
        """Memory held for all streams, in bytes."""
        return 0


class KeepAll(Pruner):
    """Keeps every token: the baseline, and the way to switch pruning off."""

    def _choose(
        self, features: Tensor, grid: tuple[int, int] | None, stream: str
    ) -> tuple[Tensor, Tensor | None]:
        frames, count = features.shape[:2]
        every = torch.arange(count, dtype=torch.int32, device=features.device)
        return every.expand(frames, count).contiguous(), None
