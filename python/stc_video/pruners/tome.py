# SPDX-License-Identifier: Apache-2.0
"""Token Merging (arXiv 2210.09461) of the tokens that a tower gives out."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from stc_kernels import bipartite_match, merge_tokens
from stc_video.pruners.base import Chosen, Frames, PrunedTokens, Pruner
from stc_video.pruners.budget import Budget


def merge_to(
    tokens: Tensor, count: int, *, metric: Tensor | None = None, protected: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge similar tokens until ``count`` are left.

    A round merges at most half of the tokens; later rounds compare the merged ones.

    Parameters
    ----------
    tokens
        (F, N, D).
    count
        From ``protected`` and 1 to N.
    metric
        (F, N, C) what is compared; None for the tokens themselves.
    protected
        The first tokens that stay as they are.

    Returns
    -------
    merged : Tensor
        (F, count, D), size-weighted means, in the order of the tokens that survive.
    kept : Tensor
        (F, count) int32, the indices of the survivors.
    source_map : Tensor
        (F, N) int32, the row that each token became part of.
    sizes : Tensor
        (F, count) float32, of how many tokens each row is the mean.
    """
    frames, length = tokens.shape[:2]
    every = torch.arange(length, dtype=torch.int64, device=tokens.device).expand(frames, length)
    kept, source = every, every
    compared = tokens if metric is None else metric
    sizes = torch.ones((frames, length), dtype=torch.float32, device=tokens.device)
    while tokens.shape[1] > count:
        left = tokens.shape[1]
        r = min(left - count, (left - protected) // 2)
        step, survivors, _ = bipartite_match(compared, r, protected=protected)
        before = sizes
        tokens, sizes = merge_tokens(tokens, step, left - r, sizes=before)
        if metric is None:
            compared = tokens
        else:
            compared, _ = merge_tokens(compared, step, left - r, sizes=before)
        kept = torch.gather(kept, 1, survivors.long())
        source = torch.gather(step.long(), 1, source)
    return tokens, kept.int(), source.int(), sizes


def merge_within_bands(
    tokens: Tensor, count: int, window: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge similar tokens of the same band of the frame until ``count`` are left.

    Bands are stretches of at most ``window`` tokens in raster order, all of one size but for one
    token, and so is what is left of each. The time is linear in the tokens of a frame.

    Parameters
    ----------
    tokens
        (F, N, D).
    count
        From the number of bands to N.
    window
        Tokens of a band, at least 1.

    Returns
    -------
    merged, kept, source_map, sizes
        As :func:`merge_to`.
    """
    frames, length, channels = tokens.shape
    bands = max(1, -(-length // window))
    parts, place, row = [], 0, 0
    for number, size, left in _equal_bands(length, count, bands):
        part = tokens[:, place : place + number * size].reshape(frames * number, size, channels)
        merged, kept, source, sizes = merge_to(part, left)
        band = torch.arange(number, dtype=torch.int32, device=tokens.device).repeat(frames)
        whole = (frames, number * left)
        parts.append(
            (
                merged.view(*whole, channels),
                (kept + band[:, None] * size).view(whole) + place,
                (source + band[:, None] * left).view(frames, number * size) + row,
                sizes.view(whole),
            )
        )
        place, row = place + number * size, row + number * left
    if len(parts) == 1:
        return parts[0]
    merged, kept, source, sizes = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return merged, kept, source, sizes


def _equal_bands(length: int, count: int, bands: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number of bands, size, tokens left of each): larger bands first, and fuller ones."""
    size, larger = divmod(length, bands)
    left, fuller = divmod(count, bands)
    cuts = sorted({0, larger, fuller, bands})
    for start, end in pairwise(cuts):
        yield end - start, size + (start < larger), left + (start < fuller)


class TomePruner(Pruner):
    """Merge the most similar tokens of each frame until a number is left. Exact count.

    ``tokens`` are means, in raster order of the tokens they were merged into; ``source_map`` says
    which tokens went where. Fewer than half of the tokens take several rounds. Differences to
    the ToMe code: the order is kept, a zero token is no NaN, and any number of tokens works (the
    variant in the STC repository needs a multiple of 3 and loses the last token of an odd number).

    Parameters
    ----------
    tokens_per_frame, retention_ratio, video_pruning_rate
        How many, in one of three ways; see :class:`stc_video.pruners.budget.Budget`. 64 if none
        is given.
    window
        A frame of more tokens is cut into bands of at most so many, in raster order, and tokens
        merge within their band only. Comparing all tokens of a frame takes time that grows with
        their square; within bands it grows with their number.
    trace
        Whether results carry the sizes of the merged tokens.
    """

    merges = True

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        window: int = 1024,
        trace: bool = False,
    ) -> None:
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate, otherwise=64)
        if window < 2:
            raise ValueError(f"make_pruner: window must be at least 2 tokens, got {window}")
        self.window = window
        self.trace = trace

    def _prune(self, frames: Frames) -> PrunedTokens:
        features = frames.features
        count = self.budget.count(features.shape[1])
        bands = -(-features.shape[1] // self.window)
        if count < bands:
            raise ValueError(
                f"pruner: tokens_per_frame must be at least {bands}, one for each band of "
                f"{self.window} tokens (window), got {count}"
            )
        merged, kept, source, sizes = merge_within_bands(features, count, self.window)
        counts = torch.full((len(features),), count, dtype=torch.int32, device=features.device)
        trace = {"sizes": sizes} if self.trace else {}
        return PrunedTokens(merged, kept, counts, source_map=source, trace=trace)

    def _choose(self, frames: Frames) -> Chosen:
        """Return the survivors."""
        return self._prune(frames).indices, None, {}
