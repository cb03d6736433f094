# SPDX-License-Identifier: Apache-2.0
"""VisionZip (arXiv 2412.04467): tokens that receive attention, and merged ones of the rest."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stc_kernels import attention_column_mean, merge_tokens
from stc_video.checks import check_choice
from stc_video.pruners.base import Attention, Chosen, Frames, PrunedTokens, Pruner
from stc_video.pruners.budget import Budget, highest, listed


class VisionZipPruner(Pruner):
    """Keep the tokens that receive most attention, and merge the others into a few. Exact count.

    Importance is the attention of the class token where the tower has one, else the mean over all
    queries; of one layer (the paper: the last but one), given as ``attention``. It is computed
    without the attention matrix. The other tokens go to the most similar (by keys) of evenly
    spaced targets. :func:`stc_video.capture_attention` gives the attention of a tower's layer, also
    under a cacher.

    The authors' code puts the class token in front and the merged tokens last, without positions;
    here all are tokens of the frame in raster order (a merged one at the place of its target), and
    the class token stays with the tower. A merged token of theirs is target + mean of the others,
    about twice as long as any other (``merge="sum"``); ``"mean"`` is the mean of all.

    Parameters
    ----------
    tokens_per_frame, retention_ratio, video_pruning_rate
        How many, in one of three ways; see :class:`stc_video.pruners.budget.Budget`. 64 if none
        is given.
    contextual
        Fraction of them that is merged, 0 to below 1; the paper's 10 of 64 by default.
    merge
        ``"sum"`` or ``"mean"``.
    """

    merges = True

    def __init__(
        self,
        tokens_per_frame: int | None = None,
        *,
        retention_ratio: float | None = None,
        video_pruning_rate: float | None = None,
        contextual: float = 10 / 64,
        merge: str = "sum",
    ) -> None:
        self.budget = Budget(tokens_per_frame, retention_ratio, video_pruning_rate, otherwise=64)
        if not 0.0 <= contextual < 1.0:
            raise ValueError(
                f"make_pruner: contextual must be at least 0 and below 1, got {contextual}"
            )
        check_choice("make_pruner: merge", merge, ("sum", "mean"))
        self.contextual = contextual
        self.merge = merge

    def _prune(self, frames: Frames) -> PrunedTokens:
        features = frames.features
        count, length = features.shape[:2]
        total = self.budget.count(length)
        attention = _checked(frames)
        merged_count = int(self.contextual * total)
        start = attention.prefix
        query = attention.query[:, :1] if start else attention.query
        received = attention_column_mean(query, attention.key, scale=attention.scale)[:, start:]
        dominant = highest(received, total - merged_count).long()
        rest = torch.ones((count, length), dtype=torch.bool, device=features.device)
        rest.scatter_(1, dominant, False)
        others = listed(rest)[:, : length - dominant.shape[1]].long()
        # Evenly spaced among the others, the first `merged_count` of them.
        step = max(1, others.shape[1] // max(1, merged_count))
        targets = others[:, ::step][:, :merged_count]
        keep = (~rest).scatter(1, targets, True)
        indices = listed(keep)[:, :total]
        row = keep.cumsum(1) - 1
        metric = normalize(attention.key[:, start:].float().mean(2), dim=-1, eps=1e-8)
        source = torch.where(keep, row, -1)
        if merged_count:
            source = _assign(source, row, metric, others, targets)
        tokens = self._merge(features, source.int(), keep, total)
        counts = torch.full((count,), total, dtype=torch.int32, device=features.device)
        return PrunedTokens(tokens, indices, counts, received, source.int())

    def _merge(self, features: Tensor, source: Tensor, keep: Tensor, total: int) -> Tensor:
        if self.merge == "mean":
            return merge_tokens(features, source, total)[0]
        # A target counts once, and all that was assigned to it once together.
        added = (~keep).float()
        row = source.clamp_min(0).long()
        others = added.new_zeros((len(added), total)).scatter_add_(1, row, added)
        weight = torch.where(keep, 1.0, 1.0 / torch.gather(others, 1, row))
        mean, sums = merge_tokens(features, source, total, sizes=weight)
        return mean * sums[..., None].to(mean.dtype)

    def _choose(self, frames: Frames) -> Chosen:
        """Return the kept indices and the attention received."""
        pruned = self._prune(frames)
        return pruned.indices, pruned.scores, {}


def _assign(source: Tensor, row: Tensor, metric: Tensor, others: Tensor, targets: Tensor) -> Tensor:
    """Give each of the other tokens the row of its most similar target; ties to the first."""

    def pick(indices: Tensor) -> Tensor:
        return torch.gather(metric, 1, indices[..., None].expand(-1, -1, metric.shape[2]))

    cosine = (pick(others) @ pick(targets).transpose(1, 2)).nan_to_num(nan=-torch.inf)
    best = cosine.amax(-1, keepdim=True)
    order = torch.arange(targets.shape[1], device=cosine.device)
    nearest = torch.where(cosine == best, order, targets.shape[1]).amin(-1)
    into = torch.gather(row, 1, torch.gather(targets, 1, nearest))
    assigned = source.scatter(1, others, into)
    # A target stays its own.
    return assigned.scatter(1, targets, torch.gather(row, 1, targets))


def _checked(frames: Frames) -> Attention:
    """Return the attention if it fits the features."""
    attention, features = frames.attention, frames.features
    if attention is None:
        raise ValueError(
            "pruner: visionzip needs attention=Attention(query, key, prefix), such as from "
            "capture_attention(tower)"
        )
    expected = (features.shape[0], attention.prefix + features.shape[1])
    for name, tensor in (("query", attention.query), ("key", attention.key)):
        # The class token is the only query that is looked at.
        enough = name == "query" and attention.prefix > 0 and tensor.shape[1:2] == (1,)
        shape = (expected[0], 1) if enough else expected
        if tensor.dim() != 4 or tuple(tensor.shape[:2]) != shape:
            raise ValueError(
                f"pruner: {name} of the attention must have shape {expected} + (heads, channels), "
                f"got {tuple(tensor.shape)}"
            )
    return attention
