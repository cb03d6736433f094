# SPDX-License-Identifier: Apache-2.0
"""StreamingAssistant (arXiv 2512.12560): temporal drop, then MSSAVT on a checkerboard."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from stc_kernels import spatial_redundancy
from stc_video.pruners.base import Frames
from stc_video.pruners.novelty import NoveltyPruner, StreamState, change_from_previous

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
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        floor: int = 0,
        window: int | None = None,
        trace: bool = False,
    ) -> None:
        super().__init__(
            tokens_per_frame,
            retention_ratio=retention_ratio,
            video_pruning_rate=video_pruning_rate,
            floor=floor,
            window=window,
            trace=trace,
        )
        for name, value, allowed in (
            ("neighbours", neighbours, NEIGHBOURS),
            ("pattern", pattern, PATTERNS),
            ("parity", parity, PARITIES),
        ):
            if value not in allowed:
                raise ValueError(
                    f"make_pruner: {name} must be one of {', '.join(allowed)}, got {value!r}"
                )
        for name, threshold in (
            ("temporal_threshold", temporal_threshold),
            ("spatial_threshold", spatial_threshold),
        ):
            if not -1.0 <= threshold <= 1.0:
                raise ValueError(f"make_pruner: {name} must be between -1 and 1, got {threshold}")
        if passes < 1:
            raise ValueError(f"make_pruner: passes must be at least 1, got {passes}")
        self.temporal_threshold = temporal_threshold
        self.spatial_threshold = spatial_threshold
        self.neighbours = neighbours
        self.pattern = pattern
        self.parity = parity
        self.passes = passes

    # A frame costs a GPU its share of three operators (cosines, redundancy, gathering) and some
    # elementwise launches; nothing is asked of it, so that all of it can be captured in a graph.
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

    def _candidates(self, redundancy: Tensor, seen: int, step: int) -> Tensor:
        """Mask (F or 1, H, W) of the tokens that this pass may drop."""
        frames, height, width = redundancy.shape
        halves = _halves(self.pattern, height, width, redundancy.device)
        if self.parity == "adaptive":
            finite = redundancy.clamp_min(-1.0)
            sums = [finite.where(half, 0.0).sum((1, 2), keepdim=True) for half in halves]
            return torch.where(sums[1] >= sums[0], halves[1 - step % 2], halves[step % 2])
        if self.parity == "fixed":
            return halves[1 - step % 2][None]
        turns = [halves[(frame + 1 + step) % 2] for frame in range(seen, seen + frames)]
        return turns[0][None] if frames == 1 else torch.stack(turns or [halves[0]])[:frames]


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _halves(pattern: str, height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Masks (H, W) of both halves of the places; the second is the one that goes first.

    Kept, because making them takes more launches than the rest of the pruner.
    """
    row = torch.arange(height)[:, None]
    column = torch.arange(width)[None, :]
    if pattern == "checkerboard":
        half = (row + column) % 2 == 1
    elif pattern == "stripes":
        half = (column % 2 == 1).expand(height, width)
    else:
        order = torch.randperm(height * width, generator=torch.Generator().manual_seed(0))
        half = (order < height * width // 2).view(height, width)
    return (~half).to(device), half.to(device)
