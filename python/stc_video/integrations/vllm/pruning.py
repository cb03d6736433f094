# SPDX-License-Identifier: Apache-2.0
"""Our pruners behind the two functions by which vLLM prunes a video.

They are in its ``multimodal/video_prune/evs.py``, before 2026 in ``multimodal/evs.py``.

vLLM makes room for a video's tokens before its tower runs, so the number kept must follow from the
grid alone; which tokens they are follows from the embeddings. The functions here have vLLM's names
and parameters, and take their places in the module of a model. vLLM itself is not needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stc_video.pruners import EvsPruner, make_pruner
from stc_video.pruners.base import PrunedTokens
from stc_video.pruners.budget import ranks, retained_count, spread


def compute_retained_tokens_count(tokens_per_frame: int, num_frames: int, q: float) -> int:
    """Return how many tokens of a clip are kept; see :func:`stc_video.pruners.retained_count`.

    Parameters
    ----------
    tokens_per_frame
        Tokens of a frame as the language model gets them.
    num_frames
        Frames of the clip (temporal patches).
    q
        Fraction that is dropped, 0 to below 1.
    """
    return retained_count((num_frames, tokens_per_frame, 1), q)


def compute_retention_mask(
    video_embeds: Tensor,
    video_size_thw: Tensor | Sequence[int],
    spatial_merge_size: int,
    q: float,
    *,
    prune: str = "evs",
) -> Tensor:
    """Mark the tokens of a clip that are kept, exactly `compute_retained_tokens_count` of them.

    ``prune="evs"`` does what vLLM does, with cosines in float32: the first frame whole, and the
    rest where the content changes most. Any other pruner that can keep a given number of each
    frame spreads the same total evenly over the frames, the earlier ones getting what is left
    over; ``functools.partial(compute_retention_mask, prune="stc")`` has vLLM's signature.

    Parameters
    ----------
    video_embeds
        (T * H * W / m**2, D) tokens of a clip, frame by frame in raster order.
    video_size_thw
        (T, H, W) in patches.
    spatial_merge_size
        m, patches that were merged along each side.
    q
        Fraction that is dropped, 0 to below 1.
    prune
        Name of a pruner; see :func:`stc_video.make_pruner`.

    Returns
    -------
    Tensor
        (T * H * W / m**2,) bool, on the device of the embeddings.

    Raises
    ------
    ValueError
        If the shapes do not fit, or the pruner merges tokens or cannot keep a given number.
    """
    frames, rows, columns = (int(size) for size in video_size_thw)
    grid = (rows // spatial_merge_size, columns // spatial_merge_size)
    tokens = grid[0] * grid[1]
    if video_embeds.dim() != 2 or len(video_embeds) != frames * tokens:
        raise ValueError(
            f"compute_retention_mask: video_embeds must have shape ({frames * tokens}, channels) "
            f"for {frames} frames of {grid[0]}x{grid[1]} tokens, got {tuple(video_embeds.shape)}"
        )
    total = compute_retained_tokens_count(tokens, frames, q)
    clip = video_embeds.view(frames, tokens, -1)
    if prune == "evs":
        return _marked(EvsPruner(scope="clip", video_pruning_rate=q)(clip, grid), tokens).flatten()
    pruner = make_pruner(prune, tokens_per_frame=-(-total // frames))
    pruner.tokens_kept(tokens)
    kept = pruner(clip, grid)
    if kept.source_map is not None:
        raise ValueError(
            f"compute_retention_mask: prune must name a pruner that keeps tokens as they are, "
            f"got {prune!r}, which merges them"
        )
    scores = spread(tokens, clip.device).expand(frames, tokens)
    scores = scores if kept.scores is None else kept.scores
    worth = scores.nan_to_num(nan=torch.inf).masked_fill(~_marked(kept, tokens), -torch.inf)
    quota = torch.full((frames, 1), total // frames, device=clip.device)
    quota[: total % frames] += 1
    return (ranks(worth) < quota).flatten()


def _marked(kept: PrunedTokens, tokens: int) -> Tensor:
    """Mask (F, N) of the kept tokens."""
    mask = kept.indices.new_zeros((len(kept.indices), tokens + 1), dtype=torch.bool)
    indices = torch.where(kept.indices < 0, tokens, kept.indices).long()
    return mask.scatter(1, indices, True)[:, :tokens]
