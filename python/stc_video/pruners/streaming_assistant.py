# SPDX-License-Identifier: Apache-2.0
"""StreamingAssistant (arXiv 2512.12560): temporal drop, then MSSAVT on a checkerboard."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from stc_kernels import spatial_redundancy
from stc_video.checks import check_between, check_choice
from stc_video.pruners.base import Frames
from stc_video.pruners.novelty import (
    NoveltyPruner,
    NoveltySettings,
    StreamState,
    change_from_previous,
)

NEIGHBOURS = ("alive", "all")
PATTERNS = ("checkerboard", "stripes", "random")
PARITIES = ("fixed", "alternating", "adaptive")


class StreamingAssistantPruner(NoveltyPruner):
    """Drop what did not change, then what a neighbour in the frame already says.

    A token whose cosine to the same place one frame earlier is above ``temporal_threshold`` is
    dropped. Of the rest, a token on the mask whose largest cosine to one of its four neighbours is
    above ``spatial_threshold`` is dropped. With the checkerboard mask no two tokens of one pass
    are neighbours, so the neighbour that stands for a dropped token stays. The first frame is only
    thinned out in space. The count varies, unless a number of tokens is given: then the tokens of
    highest redundancy (the larger of the two cosines) go first, and below half of the tokens that
    promise no longer holds.

    No code of the authors is public. The paper does not say whether its thresholds are
    similarities; here they are. Its formula looks at all neighbours, also at those dropped in time
    (``neighbours="all"``), although its argument asks for ones that stay (``"alive"``).

    Parameters
    ----------
    temporal_threshold, spatial_threshold
        Cosines above which a token is dropped, -1 to 1.
    neighbours
        ``"alive"`` or ``"all"``.
    pattern
        Which half of the tokens may be dropped in space: ``"checkerboard"``, ``"stripes"``
        (every other column) or ``"random"`` (the same random half in every frame).
    parity
        ``"fixed"``, ``"alternating"`` from frame to frame, or ``"adaptive"``: the half that is
        more redundant.
    passes
        How often space is thinned out, the halves taking turns; 2 or more go beyond 50 %, and then
        a token may lose the neighbour that stood for it.
    **settings
        See :class:`NoveltyPruner`.
    """

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        temporal_threshold: float = 0.5,
        spatial_threshold: float = 0.5,
        neighbours: str = "alive",
        pattern: str = "checkerboard",
        parity: str = "fixed",
        passes: int = 1,
        **settings: Unpack[NoveltySettings],
    ) -> None:
        super().__init__(tokens_per_frame, **settings)
        check_choice("make_pruner: neighbours", neighbours, NEIGHBOURS)
        check_choice("make_pruner: pattern", pattern, PATTERNS)
        check_choice("make_pruner: parity", parity, PARITIES)
        check_between("make_pruner: temporal_threshold", temporal_threshold, -1, 1)
        check_between("make_pruner: spatial_threshold", spatial_threshold, -1, 1)
        if passes < 1:
            raise ValueError(f"make_pruner: passes must be at least 1, got {passes}")
        self.temporal_threshold = temporal_threshold
        self.spatial_threshold = spatial_threshold
        self.neighbours = neighbours
        self.pattern = pattern
        self.parity = parity
        self.passes = passes
        self._halves: dict[tuple[int, int, torch.device], Tensor] = {}

    def _novelty(
        self, frames: Frames, state: StreamState
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        if frames.grid is None:
            raise ValueError("pruner: streaming_assistant compares neighbours and needs the grid")
        change = change_from_previous(frames.features, state)
        grid = frames.features.unflatten(1, frames.grid)
        keep = ~(1.0 - change > self.temporal_threshold).unflatten(1, frames.grid)
        novelty = change
        redundancy = torch.empty(0)
        for step in range(self.passes):
            # Whether every neighbour counts or the living ones, the reading is one of the tokens.
            alive = keep if self.neighbours == "alive" else None
            redundancy = spatial_redundancy(grid, alive)
            candidate = self._candidates(redundancy, state.seen, step)
            keep = keep & ~(candidate & (redundancy > self.spatial_threshold))
            spatial = torch.where(candidate, 1.0 - redundancy, torch.inf).flatten(1)
            # Not minimum(): a NaN change must stay NaN, which ranks first.
            novelty = torch.where(spatial < novelty, spatial, novelty)
        trace = {"change": change, "redundancy": redundancy.flatten(1)}
        return novelty, keep.flatten(1), trace

    def _candidates(self, redundancy: Tensor, seen: Tensor, step: int) -> Tensor:
        """Mask (F, H, W) of the tokens that this pass may drop."""
        frames, height, width = redundancy.shape
        device = redundancy.device
        if (half := self._halves.get((height, width, device))) is None:
            half = self._halves[height, width, device] = self._half(height, width, device)
        frame = (torch.arange(frames, device=device) + seen)[:, None, None]
        odd = torch.ones_like(frame)
        if self.parity == "alternating":
            odd = (frame + 1) % 2
        elif self.parity == "adaptive":
            finite = redundancy.clamp_min(-1.0)
            weight = finite.masked_fill(half == 0, 0.0).sum((1, 2), keepdim=True)
            odd = (weight >= finite.sum((1, 2), keepdim=True) - weight).long()
        return (half + odd + step) % 2 == 0

    def _half(self, height: int, width: int, device: torch.device) -> Tensor:
        """One half of the places as 1, the other as 0, (H, W)."""
        row = torch.arange(height, device=device)[:, None]
        column = torch.arange(width, device=device)[None, :]
        if self.pattern == "checkerboard":
            return (row + column) % 2
        if self.pattern == "stripes":
            return (column % 2).expand(height, width)
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
        return (order < height * width // 2).long().view(height, width).to(device)
