# SPDX-License-Identifier: Apache-2.0
"""Reference of ``bipartite_match`` and ``merge_tokens``."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from stc_kernels.reference.token_cosine import EPSILON


def _best_partner(unit: Tensor, candidates: Tensor, partners: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of each candidate with its best partner, and the place of that partner."""
    if len(partners) == 0:
        lonely = unit.new_full((len(unit), len(candidates)), -torch.inf)
        return lonely, torch.zeros_like(lonely, dtype=torch.long)
    cosine = unit[:, candidates] @ unit[:, partners].transpose(1, 2)
    cosine = cosine.nan_to_num(nan=-torch.inf)
    best = cosine.amax(-1, keepdim=True)
    # The lowest of equal partners: argmax promises no order.
    return best[..., 0], torch.where(cosine == best, partners, unit.shape[1]).amin(-1)


def bipartite_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row that each token becomes part of, the survivors, and the similarities."""
    batch, tokens = metric.shape[:2]
    place = torch.arange(tokens, device=metric.device)
    candidates = place[protected + protected % 2 :: 2]
    partners = place[protected + (protected + 1) % 2 :: 2]
    unit = normalize(metric.float(), dim=-1, eps=EPSILON)
    best, partner = _best_partner(unit, candidates, partners)
    similarity = best.new_full((batch, tokens), -torch.inf)
    similarity[:, protected + protected % 2 :: 2] = best
    order = torch.sort(best, dim=-1, descending=True, stable=True).indices[:, :r]
    leaves = candidates[order]
    survives = torch.ones((batch, tokens), dtype=torch.bool, device=metric.device)
    survives.scatter_(1, leaves, False)
    row = survives.cumsum(1) - 1
    # A stable sort lists the survivors, in order, before the others.
    kept = torch.sort((~survives).int(), dim=-1, stable=True).indices[:, : tokens - r]
    into = torch.gather(row, 1, torch.gather(partner, 1, order))
    return row.scatter(1, leaves, into).int(), kept.int(), similarity


def merge_tokens(
    tokens: Tensor, source_map: Tensor, count: int, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of the tokens of each row, and the sizes summed up."""
    batch, places, channels = tokens.shape
    weight = tokens.new_ones((batch, places), dtype=torch.float32) if sizes is None else sizes
    # One spare row takes the tokens of row -1: no mask, hence no host synchronisation.
    row = torch.where(source_map < 0, count, source_map).long()
    total = weight.new_zeros((batch, count + 1)).scatter_add_(1, row, weight)[:, :count]
    summed = weight.new_zeros((batch, count + 1, channels))
    summed.scatter_add_(1, row[..., None].expand(tokens.shape), tokens.float() * weight[..., None])
    mean = summed[:, :count] / total[..., None]
    empty = (total == 0)[..., None]
    return torch.where(empty, 0.0, mean).to(tokens.dtype), total.clone()
