# SPDX-License-Identifier: Apache-2.0
"""Budgets of tokens per frame, and the choice of that many by score.

Nothing here waits for the device: where the number depends on the features, shapes stay fixed and
-1 fills them up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


class Budget:
    """A number of tokens per frame, given in one of the three usual ways.

    Parameters
    ----------
    tokens_per_frame
        The number itself, at least 1.
    retention_ratio
        Fraction of a frame that is kept, above 0 and at most 1; rounded half up, at least 1.
    video_pruning_rate
        Fraction that is dropped, 0 to below 1: what vLLM and SGLang call it.
    otherwise
        ``tokens_per_frame`` if none of the three is given; None to have no number then.
    caller
        Function that errors name.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        *,
        otherwise: int | None = None,
        caller: str = "make_pruner",
    ) -> None:
        given = [tokens_per_frame, retention_ratio, video_pruning_rate]
        if sum(value is not None for value in given) > 1:
            raise ValueError(
                f"{caller}: give one of tokens_per_frame, retention_ratio and "
                f"video_pruning_rate, got {tokens_per_frame}, {retention_ratio}, "
                f"{video_pruning_rate}"
            )
        if video_pruning_rate is not None:
            if not 0.0 <= video_pruning_rate < 1.0:
                raise ValueError(
                    f"{caller}: video_pruning_rate must be at least 0 and below 1, "
                    f"got {video_pruning_rate}"
                )
            retention_ratio = 1.0 - video_pruning_rate
        elif retention_ratio is None and tokens_per_frame is None:
            tokens_per_frame = otherwise
        if retention_ratio is not None and not 0.0 < retention_ratio <= 1.0:
            raise ValueError(
                f"{caller}: retention_ratio must be above 0 and at most 1, got {retention_ratio}"
            )
        if tokens_per_frame is not None and tokens_per_frame < 1:
            raise ValueError(
                f"{caller}: tokens_per_frame must be at least 1, got {tokens_per_frame}"
            )
        self.tokens_per_frame = tokens_per_frame
        self.retention_ratio = retention_ratio

    def __repr__(self) -> str:
        if self.tokens_per_frame is not None:
            return f"{self.tokens_per_frame} tokens per frame"
        return f"{self.retention_ratio:g} of the tokens" if self.retention_ratio else "no number"

    @property
    def given(self) -> bool:
        """Whether there is a number."""
        return self.tokens_per_frame is not None or self.retention_ratio is not None

    def count(self, tokens: int) -> int:
        """Return the number for a frame of so many tokens.

        Raises
        ------
        ValueError
            If the frame has fewer.
        """
        if self.tokens_per_frame is not None:
            if self.tokens_per_frame > tokens:
                raise ValueError(
                    f"pruner: tokens_per_frame must be between 1 and {tokens} (tokens of a "
                    f"frame), got {self.tokens_per_frame}"
                )
            return self.tokens_per_frame
        if self.retention_ratio is None:
            raise ValueError("pruner: no number of tokens per frame was given")
        return min(tokens, max(1, int(self.retention_ratio * tokens + 0.5)))

    def clip_count(self, frames: int, tokens: int) -> int:
        """Return the number for a whole clip whose first frame is kept whole.

        A ratio is taken of the whole clip and rounded down: see :func:`retained_count`.
        """
        if self.retention_ratio is None:
            return max(tokens, frames * self.count(tokens))
        return max(tokens, int(frames * tokens * self.retention_ratio))


def retained_count(grid: tuple[int, int, int], rate: float) -> int:
    """Return how many tokens of a clip are kept, which follows from its grid alone.

    This is the number that vLLM makes room for before the vision tower has run: the fraction
    ``1 - rate`` of the clip, rounded down, and never less than one frame.

    Parameters
    ----------
    grid
        (T, H, W) tokens of the clip, after any merging of patches, each at least 1.
    rate
        Fraction that is dropped (``video_pruning_rate``), 0 to below 1.

    Raises
    ------
    ValueError
        If the grid or the rate is out of range.

    Examples
    --------
    >>> retained_count((8, 14, 14), 0.75)
    392
    """
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(
            f"retained_count: grid must be (frames, rows, columns), each at least 1, got {grid}"
        )
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"retained_count: rate must be at least 0 and below 1, got {rate}")
    frames, height, width = grid
    return Budget(video_pruning_rate=rate).clip_count(frames, height * width)


def ranks(scores: Tensor) -> Tensor:
    """Rank (F, N) of each token by score, 0 the highest; ties to the lower index, NaN first."""
    keys = torch.where(scores.isnan(), torch.inf, scores)
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    place = torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)
    return torch.empty_like(order).scatter_(-1, order, place)


def highest(scores: Tensor, count: int) -> Tensor:
    """Indices (F, count) int32, ascending, of the highest scores; ties as in :func:`ranks`."""
    keys = torch.where(scores.isnan(), torch.inf, scores)
    order = torch.sort(keys, dim=-1, descending=True, stable=True).indices
    return order[:, :count].sort(dim=-1).values.int()


def listed(keep: Tensor) -> Tensor:
    """Indices (F, K) int32 of a mask (F, N), ascending, padded at the end with -1.

    K is the largest count on a CPU, and N on a GPU, where asking for the count would wait.
    """
    tokens = keep.shape[-1]
    place = torch.arange(tokens, dtype=torch.int32, device=keep.device)
    ascending = torch.where(keep, place, tokens).sort(dim=-1).values
    indices = torch.where(ascending == tokens, -1, ascending)
    if keep.device.type != "cpu" or keep.numel() == 0:
        return indices
    return indices[:, : int(keep.sum(-1).max())].contiguous()


def spread(tokens: int, device: torch.device) -> Tensor:
    """Priorities (N,) in [0, 1) of which the highest k are spread over the frame, for every k."""
    place = torch.arange(1, tokens + 1, dtype=torch.float64, device=device)
    return torch.frac(place * 0.6180339887498949).float()


@dataclass
class TokenBucket:
    """Spends a fixed number of tokens per window of frames where the content changes.

    The first frame is granted the rate, every other its share of the mean change so far. What it
    may have lies between what must be spent for the window to come out exactly and what must be
    left for the frames to come. Windows follow each other from the first frame of a stream.

    Parameters
    ----------
    rate
        Tokens per frame on average.
    window
        Frames over which the number is exact, at least 1.
    floor
        Tokens that every frame gets.
    """

    rate: int
    window: int
    floor: int = 1
    _frame: int = 0
    _spent: Tensor | None = field(default=None, repr=False)
    _mean: Tensor | None = field(default=None, repr=False)

    def grant(self, change: Tensor, tokens: int) -> Tensor:
        """Return the number of tokens () int64 for the next frame.

        Parameters
        ----------
        change
            () float32, at least 0, how much the frame changed.
        tokens
            N, what it may have at most.
        """
        within = self._frame % self.window
        if within == 0 or self._spent is None:
            self._spent = torch.zeros((), dtype=torch.int64, device=change.device)
        change = change.nan_to_num(nan=0.0, posinf=0.0).clamp_min(0.0)
        target = torch.full_like(self._spent, self.rate)
        if self._frame > 0:  # in a first frame everything is new, which says nothing of the rest
            self._mean = change if self._mean is None else 0.9 * self._mean + 0.1 * change
            target = (self.rate * change / self._mean.clamp_min(1e-6)).round().long()
        left = self.window - 1 - within
        remaining = self.rate * self.window - self._spent
        least = (remaining - tokens * left).clamp_min(min(self.floor, tokens))
        most = (remaining - self.floor * left).clamp_max(tokens)
        granted = torch.minimum(torch.maximum(target, least), most)
        self._spent = self._spent + granted
        self._frame += 1
        return granted
