# SPDX-License-Identifier: Apache-2.0
"""Differential Token Drop of TimeChat-Online (arXiv 2504.17343): drop what did not change."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from stc_kernels import token_cosine
from stc_video.checks import check_between, check_choice
from stc_video.pruners.base import Frames
from stc_video.pruners.budget import spread
from stc_video.pruners.novelty import (
    NoveltyPruner,
    NoveltySettings,
    StreamState,
    change_from_previous,
    remember,
)

MODES = ("feature", "pixel")
ANCHORS = ("previous", "last_kept")


class DtdPruner(NoveltyPruner):
    """Drop the tokens that resemble the same place in an earlier frame.

    With a threshold (as in the paper) the count varies, the first frame is kept whole, and a frame
    may keep nothing unless ``floor`` says otherwise. With a number of tokens it is exact; the
    paper's relative mode, which drops a fraction of every frame, is ``video_pruning_rate``.

    The authors' code compares with the frame before even where that token was dropped, so that
    a slow drift is never sent; ``anchor="last_kept"`` compares with what was sent last. It
    groups tokens by M-RoPE time, which mixes slots above 4 frames per second and videos of one
    prompt, and asks the device for every token. In its pixel mode the last picture of a slot is
    compared with the first of the slot before; here a frame is one picture.

    Parameters
    ----------
    threshold
        ``mode="feature"``: cosine above which a token is dropped, -1 to 1, 0.5 if neither it nor a
        number is given. ``mode="pixel"``: mean absolute difference, 0 to 1, below which it is
        dropped, 0.1 by default. It depends on the model: calibrate it by the count it gives.
    mode
        ``"feature"`` or ``"pixel"``; the latter needs ``pixels`` and the grid.
    anchor
        ``"previous"`` or ``"last_kept"``.
    **settings
        See :class:`NoveltyPruner`.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        threshold: float | None = None,
        mode: str = "feature",
        anchor: str = "previous",
        **settings: Unpack[NoveltySettings],
    ) -> None:
        super().__init__(tokens_per_frame, **settings)
        check_choice("make_pruner: mode", mode, MODES)
        check_choice("make_pruner: anchor", anchor, ANCHORS)
        if threshold is not None and self.budget.given:
            raise ValueError("make_pruner: give a threshold or a number of tokens, not both")
        if anchor == "last_kept" and self.budget.given:
            raise ValueError("make_pruner: anchor='last_kept' goes with a threshold, not a number")
        low = -1.0 if mode == "feature" else 0.0
        if threshold is None:
            threshold = 0.5 if mode == "feature" else 0.1
        check_between("make_pruner: threshold", threshold, low, 1)
        self.mode = mode
        self.anchor = anchor
        self.threshold = threshold
        self.by_change_alone = mode == "feature" and anchor == "previous"

    def _compared(self, frames: Frames) -> Tensor:
        if self.mode == "feature":
            return frames.features
        if frames.pixels is None or frames.grid is None:
            raise ValueError("pruner: mode='pixel' needs pixels (F, 3, height, width) and the grid")
        height, width = frames.grid
        pixels = frames.pixels
        if pixels.dim() != 4 or len(pixels) != len(frames.features):
            raise ValueError(
                f"pruner: pixels must have shape ({len(frames.features)}, 3, height, width), "
                f"got {tuple(pixels.shape)}"
            )
        if pixels.shape[2] % height or pixels.shape[3] % width:
            raise ValueError(
                f"pruner: the {pixels.shape[2]}x{pixels.shape[3]} pixels must be a multiple of "
                f"the grid {height}x{width}"
            )
        return (
            pixels.float()
            .unfold(2, pixels.shape[2] // height, pixels.shape[2] // height)
            .unfold(3, pixels.shape[3] // width, pixels.shape[3] // width)
            .permute(0, 2, 3, 1, 4, 5)
            .flatten(3)
            .flatten(1, 2)
        )

    def _novelty(
        self, frames: Frames, state: StreamState
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        current = self._compared(frames)
        if self.anchor == "last_kept":
            change = self._change_from_kept(current, state)
        elif self.mode == "feature":
            change = change_from_previous(current, state)
        else:
            change = _pixel_change(current, state)
        return change, self._is_new(change), {"change": change}

    def _is_new(self, change: Tensor) -> Tensor:
        """Whether tokens are kept at the threshold; NaN is."""
        if self.mode == "feature":
            return ~(1.0 - change > self.threshold)
        return ~(change < self.threshold)

    def _change_from_kept(self, current: Tensor, state: StreamState) -> Tensor:
        """Change since each token was last kept. Frame by frame, since one decides for the next."""
        changes = []
        for frame in current:
            if state.anchor is None:
                change = 2.0 + spread(current.shape[1], current.device)
                remember(state, frame)
            else:
                if self.mode == "feature":
                    change = 1.0 - token_cosine(frame[None], state.anchor)[0]
                else:
                    change = (frame - state.anchor).abs().mean(-1)
                kept = self._is_new(change)[:, None]
                remember(state, torch.where(kept, frame, state.anchor))
            changes.append(change)
        empty = current.new_zeros(current.shape[:2], dtype=torch.float32)
        return torch.stack(changes) if changes else empty


def _pixel_change(current: Tensor, state: StreamState) -> Tensor:
    """Mean absolute difference of each patch to the frame before."""
    if len(current) == 0:
        return current.new_zeros(current.shape[:2])
    before = current[:1] if state.anchor is None else state.anchor[None]
    change = (current - torch.cat([before, current[:-1]])).abs().mean(-1)
    if state.anchor is None:
        change[0] = 2.0 + spread(current.shape[1], current.device)
    remember(state, current[-1])
    return change
