# SPDX-License-Identifier: Apache-2.0
"""Pruners that give each token a score of how new it is, and keep the newest."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from stc_kernels import select_changed, token_cosine
from stc_video.pruners.base import Chosen, Frames, Pruner
from stc_video.pruners.budget import Budget, TokenBucket, highest, ranks, spread


@dataclass
class StreamState:
    """State of a stream.

    Attributes
    ----------
    seen
        () int64, how many frames there were; on the device, so that the replay of a graph counts.
    anchor
        What the next frame is compared with, or None before the first.
    bucket
        Its token bucket, if there is a budget.
    tokens
        Tokens of a frame.
    """

    seen: Tensor
    anchor: Tensor | None = None
    bucket: TokenBucket | None = None
    tokens: int = 0

    @classmethod
    def on(cls, device: torch.device, tokens: int) -> StreamState:
        """Return the state of a stream without frames."""
        # An inference tensor could later not be written to outside of inference mode.
        with torch.inference_mode(False):
            return cls(torch.zeros((), dtype=torch.int64, device=device), tokens=tokens)


class NoveltySettings(TypedDict, total=False):
    """The settings that all pruners by novelty share; see :class:`NoveltyPruner`."""

    retention_ratio: float | None
    video_pruning_rate: float | None
    floor: int
    window: int | None
    trace: bool


class NoveltyPruner(Pruner):
    """Scores tokens by novelty (higher is kept) and chooses among them in one of three modes.

    A number of tokens (``tokens_per_frame``, ``retention_ratio`` or ``video_pruning_rate``): that
    many of each frame, the newest; of the first frame, which is all new, an even spread. With
    ``window`` the number is an average that is exact over each window of frames, spent where the
    content changes. Without a number: what is above the threshold, at least ``floor`` tokens.

    Parameters
    ----------
    tokens_per_frame, retention_ratio, video_pruning_rate
        See :class:`stc_video.pruners.budget.Budget`.
    floor
        Tokens that every frame keeps at least, so that a still clip is more than its first frame.
    window
        Frames over which the number is exact; None for every single frame.
    trace
        Whether results carry what was looked at.
    """

    #: ``retention_ratio`` if no number is given; None for the threshold
    default_ratio: float | None = None
    #: Whether the score is the change of the features since the frame before and nothing else, so
    #: that one operator compares and chooses.
    by_change_alone: bool = False

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        floor: int = 0,
        window: int | None = None,
        trace: bool = False,
    ) -> None:
        if tokens_per_frame is None and retention_ratio is None and video_pruning_rate is None:
            retention_ratio = self.default_ratio
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate)
        if floor < 0:
            raise ValueError(f"make_pruner: floor must be at least 0 tokens, got {floor}")
        if window is not None and (window < 1 or not self.budget.given):
            raise ValueError(
                "make_pruner: window must be at least 1 frame and goes with tokens_per_frame or "
                f"retention_ratio, got {window}"
            )
        self.floor = floor
        self.window = window
        self.trace = trace
        self._streams: dict[str, StreamState] = {}

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether every frame keeps a number that is known beforehand."""
        return self.budget.given and self.window is None

    @abstractmethod
    def _novelty(
        self, frames: Frames, state: StreamState
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return scores (F, N), whether each is above the threshold, and a trace."""

    def _choose(self, frames: Frames) -> Chosen:
        tokens = frames.features.shape[1]
        if self.floor > tokens:
            raise ValueError(
                f"pruner: floor must be between 0 and {tokens} (tokens of a frame), "
                f"got {self.floor}"
            )
        count = max(self.floor, self.budget.count(tokens) if self.budget.given else 0)
        state = self._state_of(frames)
        if self.by_change_alone and self.exact:
            indices, scores = newest(frames.features, state, count)
            state.seen += len(scores)
            return indices, scores, {"change": scores} if self.trace else {}
        scores, above, trace = self._novelty(frames, state)
        state.seen += len(scores)
        shown = trace if self.trace else {}
        if not self.budget.given:
            keep = above if self.floor == 0 else above | (ranks(scores) < self.floor)
            return keep, scores, shown
        if self.window is None:
            return highest(scores, count), scores, shown
        return self._spend(scores, count, state), scores, shown

    def _spend(self, scores: Tensor, rate: int, state: StreamState) -> Tensor:
        """Grant each frame its tokens from the stream's bucket: a mask (F, N)."""
        if state.bucket is None:
            state.bucket = TokenBucket(rate, int(self.window or 1), max(1, self.floor))
        order = ranks(scores)
        tokens = scores.shape[1]
        masks = [
            rank
            < state.bucket.grant(frame.nan_to_num(nan=0.0, posinf=0.0).clamp(0, 2).mean(), tokens)
            for rank, frame in zip(order, scores, strict=True)
        ]
        return torch.stack(masks) if masks else order.int()

    def _state_of(self, frames: Frames) -> StreamState:
        """State of the stream; a frame of another shape, dtype or device starts it afresh."""
        state = self._streams.get(frames.stream)
        like = self._compared(frames)
        tokens = frames.features.shape[1]
        if state is not None and state.anchor is not None:
            anchor = state.anchor
            same = anchor.shape == like.shape[1:] and anchor.dtype == like.dtype
            if not same or anchor.device != like.device or state.tokens != tokens:
                state = None
        if state is None:
            state = self._streams[frames.stream] = StreamState.on(like.device, tokens)
        return state

    def _compared(self, frames: Frames) -> Tensor:
        """Return the features that are compared from frame to frame, (F, N, C)."""
        return frames.features

    @property
    def state_bytes(self) -> int:
        """Memory held for all streams, in bytes."""
        # Other threads may add some.
        anchors = [state.anchor for state in list(self._streams.values())]
        return sum(anchor.nbytes for anchor in anchors if anchor is not None)


def change_from_previous(current: Tensor, state: StreamState) -> Tensor:
    """1 - cosine of each token to the same place one frame earlier; remembers the last frame.

    The first frame of a stream scores 2 to 3, above every other, in an even spread. A NaN on
    either side gives NaN.
    """
    if len(current) == 0:
        return current.new_zeros(current.shape[:2], dtype=torch.float32)
    first = state.anchor is None
    before = current[:1] if state.anchor is None else state.anchor[None]
    similarity = token_cosine(current[:1], before)
    if len(current) > 1:  # rather than one call on a concatenated copy of the previous frames
        similarity = torch.cat([similarity, token_cosine(current[1:], current[:-1])])
    change = 1.0 - similarity
    if first:
        change[0] = 2.0 + spread(current.shape[1], current.device)
    remember(state, current[-1])
    return change


def newest(current: Tensor, state: StreamState, count: int) -> tuple[Tensor, Tensor]:
    """Indices (F, count) of the tokens of highest change, and the change (F, N).

    The change is that of :func:`change_from_previous`, ties and NaN go as in
    :func:`stc_video.pruners.budget.ranks`.
    """
    empty = current.new_empty((0, current.shape[1]), dtype=torch.float32)
    parts = []
    if len(current) and state.anchor is None:
        first = (2.0 + spread(current.shape[1], current.device))[None]
        parts.append((highest(first, count), first))
    elif state.anchor is not None and len(current):
        parts.append(_changed(current[:1], state.anchor[None], count))
    if len(current) > 1:
        parts.append(_changed(current[1:], current[:-1], count))
    if len(current):
        remember(state, current[-1])
    if len(parts) == 1:
        return parts[0]
    indices = [empty[:, :count].int(), *(part[0] for part in parts)]
    return torch.cat(indices), torch.cat([empty, *(part[1] for part in parts)])


def _changed(current: Tensor, before: Tensor, count: int) -> tuple[Tensor, Tensor]:
    indices, similarity = select_changed(current, before, count)
    return indices, 1.0 - similarity


def remember(state: StreamState, frame: Tensor) -> None:
    """Keep a copy of the frame to compare with."""
    if state.anchor is None:
        with torch.inference_mode(False):
            state.anchor = torch.empty(frame.shape, dtype=frame.dtype, device=frame.device)
    state.anchor.copy_(frame)
