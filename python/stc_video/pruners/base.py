# SPDX-License-Identifier: Apache-2.0
"""The interface of all pruners."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stc_kernels import compact_tokens, gather_rows
from stc_video.config import DEFAULT_STREAM
from stc_video.pruners.budget import Budget, listed

#: indices or a mask, scores, trace
Chosen = tuple[Tensor, Tensor | None, dict[str, Tensor]]


@dataclass(frozen=True)
class Attention:
    """Queries and keys of one attention layer of the tower, for pruners that rank by attention.

    Attributes
    ----------
    query, key
        (F, P + N, H, d) as they enter the attention, where the first ``prefix`` tokens are class
        token and registers and the other N those of the frame. With a class token its query is
        enough, (F, 1, H, d).
    prefix
        P; with at least one, the first token is taken for the class token.
    scale
        Factor of the dot products; None for 1 / sqrt(d).
    """

    query: Tensor
    key: Tensor
    prefix: int = 0
    scale: float | None = None


@dataclass(frozen=True)
class Frames:
    """The input of a pruner in one call; see :meth:`Pruner.__call__`."""

    features: Tensor
    grid: tuple[int, int] | None
    stream: str
    pixels: Tensor | None = None
    attention: Attention | None = None


class PrunedTokens:
    """The tokens that were kept of some frames.

    Parameters
    ----------
    tokens
        (F, K, D) as below, or (sum of counts, D), packed.
    indices, counts, scores, source_map, trace
        As below.

    Attributes
    ----------
    tokens
        (F, K, D) kept tokens, in the order of the frame; zeros where a frame kept fewer than K.
        Where the count varies, K is the largest one on a CPU, and N on a GPU, which is not asked.
    indices
        (F, K) int32 places in the frame, ascending, padded at the end with -1.
    counts
        (F,) int32 how many were kept of each frame.
    scores
        (F, N) float32 by which they were chosen, higher is kept; None if nothing was scored.
    source_map
        (F, N) int32, of pruners that merge: the row of ``tokens`` that each token became part of,
        -1 for one that was dropped; None where every kept token is itself.
    trace
        With ``trace=True``: what the pruner looked at, by name, such as the cosine to the
        previous frame; else empty.
    """

    def __init__(
        self,
        tokens: Tensor,
        indices: Tensor,
        counts: Tensor,
        scores: Tensor | None = None,
        source_map: Tensor | None = None,
        trace: dict[str, Tensor] | None = None,
    ) -> None:
        self.indices = indices
        self.counts = counts
        self.scores = scores
        self.source_map = source_map
        self.trace = {} if trace is None else trace
        # Rows of zeros are only written if somebody asks for them.
        self._tokens = tokens if tokens.dim() == 3 else None
        self._packed = tokens if tokens.dim() == 2 else None
        # Whether there are empty rows at the end of what is packed.
        self._has_room = False

    @classmethod
    def of_mask(
        cls,
        features: Tensor,
        keep: Tensor,
        scores: Tensor | None = None,
        trace: dict[str, Tensor] | None = None,
    ) -> PrunedTokens:
        """Keep the marked tokens (F, N) of features (F, N, D); the device is not asked how many."""
        packed, _, counts = compact_tokens(features, keep, keep.numel())
        made = cls(packed, listed(keep), counts, scores, trace=trace)
        made._has_room = True
        return made

    def __repr__(self) -> str:
        return f"PrunedTokens(counts={self.counts.tolist()})"

    @property
    def tokens(self) -> Tensor:
        """(F, K, D) kept tokens; see the class."""
        if self._tokens is None:
            packed = self._packed
            assert packed is not None
            # Row of each place in what is packed, without asking the device how many there are.
            row = (self.indices >= 0).flatten().cumsum(0).view_as(self.indices) - 1
            row = torch.where(self.indices >= 0, row, -1)
            shape = (*self.indices.shape, packed.shape[1])
            self._tokens = gather_rows(packed[None], row.view(1, -1)).view(shape)
        return self._tokens

    def packed(self) -> Tensor:
        """Return all kept tokens in one row, (sum of counts, D): what a language model is fed."""
        if self._packed is None:
            return self.tokens[self.indices >= 0]
        return self._packed[: int(self.counts.sum())] if self._has_room else self._packed

    def positions(self, grid: tuple[int, int], first_frame: int = 0) -> Tensor:
        """Return the place of each kept token in the video, for M-RoPE models.

        Pruning must not renumber: a kept token has the position that it had in the whole frame.

        Parameters
        ----------
        grid
            (H, W) of the tokens of a frame.
        first_frame
            Number of the first of these frames in its stream.

        Returns
        -------
        Tensor
            (F, K, 3) int32 of (frame, row, column), -1 where ``indices`` is -1.
        """
        frame = torch.arange(len(self.indices), dtype=torch.int32, device=self.indices.device)
        width = grid[1]
        places = torch.stack(
            [
                (frame + first_frame)[:, None].expand_as(self.indices),
                torch.div(self.indices, width, rounding_mode="floor"),
                self.indices % width,
            ],
            dim=-1,
        )
        return torch.where((self.indices < 0)[..., None], -1, places)


def with_rows(kept: PrunedTokens, rows: Tensor) -> PrunedTokens:
    """Return the same with more values (F, N, E) of the tokens behind those that were looked at."""
    places = kept.indices.long()
    chosen = rows.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, rows.shape[2]))
    tokens = torch.cat([kept.tokens, chosen * (places >= 0)[..., None].to(rows.dtype)], dim=-1)
    return PrunedTokens(tokens, kept.indices, kept.counts, kept.scores, kept.source_map, kept.trace)


class Pruner(ABC):
    """Chooses the tokens of each frame that enter the language model.

    Attributes
    ----------
    exact
        Whether the number kept is known before the features are (vLLM and ReKV need that).
    causal
        Whether a frame's tokens are chosen without looking at later frames.
    merges
        Whether kept tokens are others than those of the frame.
    """

    exact: bool = True
    causal: bool = True
    merges: bool = False
    #: what a pruner with memory remembers, by stream
    _streams: dict[str, Any]

    def __call__(
        self,
        features: Tensor,
        grid: tuple[int, int] | None = None,
        stream: str = DEFAULT_STREAM,
        *,
        pixels: Tensor | None = None,
        attention: Attention | None = None,
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
        pixels
            (F, 3, height, width) in [0, 1], for pruners that compare pixels.
        attention
            Of a layer of the tower, for pruners that rank by attention.

        Returns
        -------
        PrunedTokens
            The kept tokens, their places and how many they are.

        Raises
        ------
        ValueError
            If the shape does not fit the grid or the settings, or an input is missing.
        """
        if features.dim() != 3:
            raise ValueError(
                "pruner: features must have 3 dimensions (frames, tokens, channels), "
                f"got shape {tuple(features.shape)}"
            )
        if grid is not None and (min(grid) < 0 or grid[0] * grid[1] != features.shape[1]):
            raise ValueError(
                f"pruner: grid must have {features.shape[1]} places (tokens), "
                f"got {grid[0]}x{grid[1]}"
            )
        with torch.no_grad():
            return self._prune(Frames(features, grid, stream, pixels, attention))

    def _prune(self, frames: Frames) -> PrunedTokens:
        """Gather what `_choose` chose; pruners that merge tokens replace this."""
        features = frames.features
        indices, scores, trace = self._choose(frames)
        if indices.dtype == torch.bool:
            if features.device.type != "cpu" and features.numel():
                return PrunedTokens.of_mask(features, indices, scores, trace)
            indices = listed(indices)
        if self.exact or features.device.type != "cpu":
            kept = gather_rows(features, indices)
        else:
            first = torch.arange(len(features))[:, None] * features.shape[1]
            rows = (indices + first)[indices >= 0]
            kept = gather_rows(features.reshape(1, -1, features.shape[2]), rows[None])[0]
        counts = (indices >= 0).sum(1, dtype=torch.int32)
        return PrunedTokens(kept, indices, counts, scores, trace=trace)

    def tokens_kept(self, tokens: int) -> int:
        """Return how many of a frame's tokens are kept, for models that must know beforehand.

        Raises
        ------
        ValueError
            If the number varies from frame to frame, or is above that of the frame's tokens.
        """
        if not self.exact:
            raise ValueError(
                f"{type(self).__name__}: the number of tokens must be the same for each frame; "
                "with these settings it varies (give tokens_per_frame and no window)"
            )
        budget = getattr(self, "budget", None)
        floor: int = getattr(self, "floor", 0)
        return max(budget.count(tokens), floor) if isinstance(budget, Budget) else tokens

    @abstractmethod
    def _choose(self, frames: Frames) -> Chosen:
        """Return what is kept, scores (F, N), a trace.

        What is kept are indices (F, K) int32, ascending and padded with -1, or a mask (F, N) where
        their number varies.
        """

    def reset(self, stream: str | None = None) -> None:
        """Forget the frames of one stream, or of all; without memory there is nothing to do."""
        streams: dict[str, Any] = getattr(self, "_streams", {})
        for name in [stream] if stream is not None else list(streams):
            streams.pop(name, None)

    def stream_state(self, stream: str) -> Any:
        """Return the state of a stream, to be saved with it; None if there is none.

        It goes on with the stream; ``copy.deepcopy`` of it stays.
        """
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

    def _choose(self, frames: Frames) -> Chosen:
        count, tokens = frames.features.shape[:2]
        every = torch.arange(tokens, dtype=torch.int32, device=frames.features.device)
        return every.expand(count, tokens).contiguous(), None, {}
