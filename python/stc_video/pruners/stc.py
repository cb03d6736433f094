# SPDX-License-Identifier: Apache-2.0
"""STC-Pruner (arXiv 2512.00891): keep what differs from the frame's mean and from the past."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_kernels import channel_variance, saliency_topk
from stc_video.checks import check_between, check_choice
from stc_video.pruners.base import Chosen, Frames, Pruner
from stc_video.pruners.budget import Budget

METHODS = ("dual_anchor", "gaussian")


@dataclass
class FrameMeans:
    """Means of the last frames of a stream, in a buffer of fixed size.

    Attributes
    ----------
    means
        (capacity, D) float32.
    slot
        (1,) int64, where the next one belongs; on the device, so that the replay of a graph writes
        there.
    is_empty
        Whether there is none yet.
    """

    means: Tensor
    slot: Tensor
    is_empty: bool = True

    @classmethod
    def empty(cls, capacity: int, width: int, device: torch.device) -> FrameMeans:
        """Return a buffer without frames."""
        with torch.inference_mode(False):
            means = torch.zeros((capacity, width), dtype=torch.float32, device=device)
            return cls(means, torch.zeros(1, dtype=torch.int64, device=device))

    def append(self, frame: Tensor) -> None:
        """Remember a frame (N, D) by the mean of its tokens, those with NaN or Inf left out."""
        rows = frame.float()
        total = rows.sum(0)
        count: Tensor | int = max(1, len(rows))
        # On a GPU, looking would wait.
        if total.device.type != "cpu" or not total.isfinite().all():
            finite = torch.isfinite(rows.sum(-1, keepdim=True))
            total = torch.where(finite, rows, 0.0).sum(0)
            count = finite.sum().clamp_min(1)
        mean = total / count
        self.means.index_copy_(0, self.slot, mean[None])
        self.slot.add_(1).remainder_(len(self.means))
        self.is_empty = False

    def direction(self) -> Tensor | None:
        """Direction (D,) of the mean of the remembered frames, or None if there is none."""
        # Places that are not filled yet are zeros and change its length only.
        return None if self.is_empty else self.means.sum(0)


class StcPruner(Pruner):
    """Keep a fixed number of tokens per frame, the most salient by two anchors.

    It differs from the authors' code where that has an error: the memory holds the last
    ``memory`` frames and not all of them, holds whole means and not means over a set of channels
    that changes from chunk to chunk, and is kept per stream. Their statistics are those of a chunk,
    the frames of one call; here a chunk is always one frame, as in their streaming runs, so that
    no frame depends on a later one, nor on how a stream is cut into calls.

    Parameters
    ----------
    tokens_per_frame
        How many tokens to keep of each frame, at least 1; 64 if nothing is given.
    retention_ratio, video_pruning_rate
        The same as a fraction of the frame: that is kept, or that is dropped.
    method
        ``"dual_anchor"``: the paper's linear blend of two cosine distances, all channels, the
        memory without the current frame. ``"gaussian"``: the authors' code, a sum of Gaussians
        over the half of the channels that varies least, the memory including the current frame.
    alpha
        Weight of the memory against the frame's mean, 0 to 1.
    channel_ratio
        Fraction of the channels to look at, those of lowest variance; None takes the method's
        own (1 for dual_anchor, 0.5 for gaussian).
    memory
        How many frames a stream remembers, at least 1.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        method: str = "dual_anchor",
        alpha: float = 0.5,
        channel_ratio: float | None = None,
        memory: int = 16,
    ) -> None:
        check_choice("make_pruner: method", method, METHODS)
        if channel_ratio is None:
            channel_ratio = 1.0 if method == "dual_anchor" else 0.5
        if not 0.0 < channel_ratio <= 1.0:
            raise ValueError(
                f"make_pruner: channel_ratio must be above 0 and at most 1, got {channel_ratio}"
            )
        check_between("make_pruner: alpha", alpha, 0, 1)
        if memory < 1:
            raise ValueError(f"make_pruner: memory must be at least 1 frame, got {memory}")
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate, otherwise=64)
        self.method = method
        self.alpha = alpha
        self.channel_ratio = channel_ratio
        self.memory = memory
        self._streams: dict[str, FrameMeans] = {}

    def _choose(self, frames: Frames) -> Chosen:
        features = frames.features
        count = self.budget.count(features.shape[1])
        memory = self._memory_of(frames.stream, features)
        chosen = [self._choose_one(frame[None], memory, count) for frame in features]
        if not chosen:
            empty = features.new_empty((0, features.shape[1]), dtype=torch.float32)
            return empty[:, :count].int(), empty, {}
        if len(chosen) == 1:
            return *chosen[0], {}
        indices, scores = (torch.cat(parts) for parts in zip(*chosen, strict=True))
        return indices, scores, {}

    def _choose_one(self, frame: Tensor, memory: FrameMeans, count: int) -> tuple[Tensor, Tensor]:
        """Choose among the tokens of one frame (1, N, D)."""
        if self.method == "gaussian":
            memory.append(frame[0])
        indices, scores = saliency_topk(
            frame,
            memory.direction(),
            count,
            method=self.method,
            alpha=self.alpha,
            channels=self._channels(frame),
        )
        if self.method == "dual_anchor":
            memory.append(frame[0])
        return indices, scores

    def _memory_of(self, stream: str, features: Tensor) -> FrameMeans:
        """Memory of a stream; features of another width or device start it afresh."""
        memory = self._streams.get(stream)
        width, device = features.shape[2], features.device
        if memory is None or memory.means.shape[1] != width or memory.means.device != device:
            memory = self._streams[stream] = FrameMeans.empty(self.memory, width, device)
        return memory

    def _channels(self, features: Tensor) -> Tensor | None:
        """Mask (D,) of the channels to look at, or None for all."""
        width = features.shape[2]
        count = max(1, math.floor(self.channel_ratio * width))
        if count == width:
            return None
        order = torch.sort(channel_variance(features), stable=True).indices[:count]
        return torch.zeros(width, dtype=torch.bool, device=features.device).index_fill_(
            0, order, True
        )

    @property
    def state_bytes(self) -> int:
        """Memory held for all streams, in bytes."""
        # Other threads may add some.
        return sum(memory.means.nbytes for memory in list(self._streams.values()))
