# SPDX-License-Identifier: Apache-2.0
"""VidCom2 (arXiv 2505.14454): more tokens for frames that differ from the rest of the video."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from stc_kernels import channel_variance
from stc_video.checks import check_choice
from stc_video.pruners.base import Chosen, Frames
from stc_video.pruners.budget import ranks
from stc_video.pruners.novelty import NoveltyPruner, NoveltySettings, StreamState, remember

SCOPES = ("stream", "clip")
EPSILON = 1e-12
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def _gaussian(frame: Tensor, norm: Tensor, anchor: Tensor) -> Tensor:
    """Sum of five Gaussians of the distance of each unit token to an anchor, in (0, 5].

    Parameters
    ----------
    frame, norm
        (N, D) tokens and (N,) their lengths; unit tokens are never held.
    anchor
        (D,).
    """
    length = norm.clamp_min(EPSILON)
    squared = (norm / length).square() + anchor @ anchor - 2.0 * (frame @ anchor) / length
    quarter = torch.exp(-0.25 * squared.clamp_min(0.0))
    powers = [quarter.pow(int(2.0 / scale)) for scale in SCALES]
    return torch.stack(powers).sum(0)


def _mean_unit(frame: Tensor, norm: Tensor) -> Tensor:
    """Mean (D,) of the unit tokens of a frame (N, D)."""
    return norm.clamp_min(EPSILON).reciprocal() @ frame / len(frame)


class VidCom2Pruner(NoveltyPruner):
    """Keep the tokens that are least like the mean of the video and the mean of their frame.

    ``scope="clip"`` is the method as published: **each call is one whole clip**, so a frame's
    tokens depend on later frames, and the count per frame follows from how unusual the frame is
    (it sums to the ratio but for clamping and rounding). ``scope="stream"`` is our causal
    approximation: the mean of the video is that of the frames so far, all channels count, and
    ``window`` spends tokens by a bucket instead of the softmax.

    The authors' softmax has a temperature of 0.01, which gives almost all of the surplus to one
    frame; it is a parameter here. Even at ratio 1 the other frames then lose tokens.

    Parameters
    ----------
    scope
        ``"stream"`` or ``"clip"``.
    temperature
        ``scope="clip"``: of the softmax over frames, above 0.
    **settings
        See :class:`NoveltyPruner`; ``retention_ratio`` is 0.25 if nothing is given.
    """

    default_ratio = 0.25

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        scope: str = "stream",
        temperature: float = 0.01,
        **settings: Unpack[NoveltySettings],
    ) -> None:
        super().__init__(tokens_per_frame, **settings)
        check_choice("make_pruner: scope", scope, SCOPES)
        if not temperature > 0.0:
            raise ValueError(f"make_pruner: temperature must be above 0, got {temperature}")
        if scope == "clip" and (self.window is not None or self.floor):
            raise ValueError("make_pruner: window and floor do not go with scope='clip'")
        self.scope = scope
        self.temperature = temperature
        self.causal = scope == "stream"

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether every frame keeps a number that is known beforehand."""
        return self.scope == "stream" and self.window is None

    def _compared(self, frames: Frames) -> Tensor:
        return frames.features[:, :1].float()

    def _novelty(
        self, frames: Frames, state: StreamState
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        likeness = frames.features.new_empty(frames.features.shape[:2], dtype=torch.float32)
        # One by one, so that nothing depends on how a stream is cut into calls.
        for index, features in enumerate(frames.features):
            frame = features.float()
            norm = torch.linalg.vector_norm(frame, dim=-1)
            centre = _mean_unit(frame, norm)
            finite = torch.where(centre.isfinite().all(), centre, 0.0)
            video = finite if state.anchor is None else state.anchor[0] + finite
            remember(state, video[None])
            video = video / (state.seen + index + 1)
            likeness[index] = _gaussian(frame, norm, video) + _gaussian(frame, norm, centre)
        novelty = 1.0 - likeness / 10.0
        return novelty, torch.ones_like(novelty, dtype=torch.bool), {"likeness": likeness}

    def _choose(self, frames: Frames) -> Chosen:
        if self.scope == "stream":
            return super()._choose(frames)
        features = frames.features
        count, tokens, width = features.shape
        if count * tokens == 0:
            return features.new_zeros((count, tokens), dtype=torch.bool), None, {}
        order = torch.sort(channel_variance(features), stable=True).indices
        used = features.float().index_select(2, order[: max(1, width // 2)])
        norm = torch.linalg.vector_norm(used, dim=-1)
        centres = torch.stack([_mean_unit(*each) for each in zip(used, norm, strict=True)])
        video = centres.mean(0)
        to_video = torch.stack([_gaussian(*each, video) for each in zip(used, norm, strict=True)])
        to_frame = [_gaussian(*each) for each in zip(used, norm, centres, strict=True)]
        scores = -(to_video + torch.stack(to_frame))
        unusual = -to_video.mean(1)
        share = torch.softmax((unusual - unusual.max()) / self.temperature, dim=0)
        ratio = self.budget.count(tokens) / tokens
        if self.budget.retention_ratio is not None:
            ratio = self.budget.retention_ratio
        ratios = (ratio * (1.0 + share - 1.0 / count)).clamp_max(1.0)
        granted = (ratios * tokens).round().clamp_min(1.0)
        keep = ranks(scores) < granted[:, None]
        return keep, scores, {"share": share} if self.trace else {}
