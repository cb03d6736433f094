# SPDX-License-Identifier: Apache-2.0
"""Every operator as one would write it in plain PyTorch, in the dtype of its inputs.

The baseline of the benchmarks, and, in the tests, the yardstick of accuracy. The arguments are
those of the operators' schemas; indices are expected to hold no -1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


def token_cosine(current: Tensor, reference: Tensor) -> Tensor:
    return F.cosine_similarity(current, reference.expand_as(current), dim=-1)


def select_changed(
    current: Tensor, reference: Tensor, k: int, pinned: int
) -> tuple[Tensor, Tensor]:
    similarity = token_cosine(current, reference)
    keys = similarity.clone()
    keys[:, :pinned] = -2.0
    return keys.topk(k, largest=False).indices.sort(-1).values, similarity


def select_changed_below(
    current: Tensor, reference: Tensor, threshold: float, capacity: int, pinned: int
) -> tuple[Tensor, Tensor, Tensor]:
    """With a fixed shape, as ours; `nonzero` would be simpler and would wait for the GPU."""
    similarity = token_cosine(current, reference)
    changed = similarity <= threshold
    changed[:, :pinned] = True
    keys = torch.where(changed, similarity, 2.0)
    lowest = keys.topk(capacity, largest=False)
    listed = torch.where(lowest.values < 2.0, lowest.indices, current.shape[1])
    ascending = listed.sort(-1).values
    return torch.where(ascending < current.shape[1], ascending, -1), changed.sum(-1), similarity


def _expanded(indices: Tensor, x: Tensor) -> Tensor:
    return indices.long()[:, :, None].expand(-1, -1, x.shape[2])


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    return torch.gather(x, 1, _expanded(indices, x))


def scatter_rows_(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    x.scatter_(1, _expanded(indices, x), rows)


def gather_layer_norm(
    x: Tensor, indices: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return F.layer_norm(gather_rows(x, indices), (x.shape[-1],), weight, bias, eps)


def scatter_residual(base: Tensor, update: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return base + update.expand_as(base).scatter(1, _expanded(indices, base), rows)


def sparse_query_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> Tensor:
    mask = None if key_bias is None else key_bias[:, None, None].to(query.dtype)
    q, k, v = (tensor.transpose(1, 2) for tensor in (query, key, value))
    grouped = k.shape[1] != q.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous()


def add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    total = base + (update if scale is None else update * scale)
    return total, F.layer_norm(total, (base.shape[-1],), weight, bias, eps)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    y = x if bias is None else x + bias
    if approximate == "quick":
        return y * torch.sigmoid(1.702 * y)
    return F.gelu(y, approximate=approximate)


def scatter_key_value_(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    at = _expanded(indices, key_cache)
    key_cache.scatter_(1, at, key if key_bias is None else key + key_bias)
    value_cache.scatter_(1, at, value if value_bias is None else value + value_bias)


def channel_variance(tokens: Tensor) -> Tensor:
    return tokens.flatten(0, 1).var(0, unbiased=False)


def saliency_topk(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Of the "gaussian" method; channels are masked, so that no shape depends on values."""
    if method != "gaussian":
        raise ValueError(f"saliency_topk: method must be gaussian here, got {method!r}")
    if channels is not None:
        tokens = tokens * channels
        memory = None if memory is None else memory * channels
    unit = F.normalize(tokens, dim=-1)

    def score(anchor: Tensor) -> Tensor:
        squared = (unit - anchor).square().sum(-1)
        return -2.0 * sum(torch.exp(-squared / (2.0 * scale)) for scale in SCALES)

    scores = score(unit.mean(1, keepdim=True))
    if memory is not None:
        past = F.normalize(memory.to(tokens.dtype), dim=0)
        scores = alpha * score(past) + (1.0 - alpha) * scores
    return scores.topk(k).indices.sort(-1).values, scores


def spatial_redundancy(tokens: Tensor, alive: Tensor | None) -> Tensor:
    unit = F.normalize(tokens, dim=-1)
    down = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    across = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1)
    nowhere = -torch.inf
    if alive is None:
        alive = torch.ones(tokens.shape[:3], dtype=torch.bool, device=tokens.device)
    sides = [
        F.pad(down.masked_fill(~alive[:, 1:], nowhere), (0, 0, 0, 1), value=nowhere),
        F.pad(down.masked_fill(~alive[:, :-1], nowhere), (0, 0, 1, 0), value=nowhere),
        F.pad(across.masked_fill(~alive[:, :, 1:], nowhere), (0, 1), value=nowhere),
        F.pad(across.masked_fill(~alive[:, :, :-1], nowhere), (1, 0), value=nowhere),
    ]
    return torch.stack(sides).amax(0)


def compact_tokens(tokens: Tensor, keep: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """With a fixed shape, as ours: a stable sort brings what is kept to the front."""
    first = torch.sort((~keep.flatten()).int(), stable=True).indices[:capacity]
    return tokens.flatten(0, 1)[first], first, keep.sum(-1)


def bipartite_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    if protected:
        raise ValueError(f"bipartite_match: protected must be 0 here, got {protected}")
    unit = F.normalize(metric, dim=-1)
    best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
    leaves = best.argsort(dim=-1, descending=True)[:, :r]
    tokens = metric.shape[1]
    survives = torch.ones(metric.shape[:2], dtype=torch.bool, device=metric.device)
    survives.scatter_(1, 2 * leaves, False)
    row = survives.cumsum(1) - 1
    kept = torch.sort((~survives).int(), stable=True).indices[:, : tokens - r]
    into = row.gather(1, 2 * partner.gather(1, leaves) + 1)
    similarity = torch.full_like(metric[..., 0], -torch.inf)
    similarity[:, ::2] = best
    return row.scatter(1, 2 * leaves, into), kept, similarity


def merge_tokens(
    tokens: Tensor, source_map: Tensor, count: int, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    weight = torch.ones_like(tokens[..., 0]) if sizes is None else sizes.to(tokens.dtype)
    at = source_map.long()
    total = weight.new_zeros((len(tokens), count)).scatter_add(1, at, weight)
    summed = tokens.new_zeros((len(tokens), count, tokens.shape[2]))
    summed.scatter_add_(1, at[..., None].expand_as(tokens), tokens * weight[..., None])
    return summed / total[..., None], total


def attention_column_mean(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """With the whole matrix, as a tower gives it when asked for its attentions."""
    key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * scale
    return logits.softmax(-1).mean((1, 2))


def _resized(x: Tensor, taps: Tensor, count: int) -> Tensor:
    """A product with the matrix of all weights along the second axis, rounded to bytes."""
    place = taps[:count, :1].long() + torch.arange(taps.shape[1] - 1, device=taps.device)
    matrix = torch.zeros((count, x.shape[1]), dtype=torch.float64, device=x.device)
    matrix.scatter_(1, place, taps[:count, 1:].double() / 2**22)
    mixed = torch.einsum("oi,bi...->bo...", matrix, x.double())
    return (mixed + 0.5).floor().clamp(0, 255)


def frames_to_patches(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    down, across = len(rows) // patch_height, len(columns) // patch_width
    x = _resized(pictures.transpose(1, 2), columns, across * patch_width).transpose(1, 2)
    x = _resized(x, rows, down * patch_height).long()
    pixels = torch.stack([values[c][x[..., c]] for c in range(3)], 1)
    patch = (patch_height, patch_width)
    return F.unfold(pixels.float(), patch, stride=patch).transpose(1, 2).to(values.dtype)


def update_patches_(patches: Tensor, pictures: Tensor, previous: Tensor, *plan: Any) -> Tensor:
    new = frames_to_patches(pictures, *plan)
    changed = (new != frames_to_patches(previous, *plan)).any(-1)
    patches[changed] = new[changed]
    return changed


PLAIN: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        token_cosine,
        select_changed,
        select_changed_below,
        gather_rows,
        scatter_rows_,
        gather_layer_norm,
        scatter_residual,
        sparse_query_attention,
        add_layer_norm,
        bias_gelu,
        scatter_key_value_,
        channel_variance,
        saliency_topk,
        spatial_redundancy,
        compact_tokens,
        bipartite_match,
        merge_tokens,
        attention_column_mean,
        frames_to_patches,
        update_patches_,
    )
}


def values_of(op: str, out: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The floating-point results of an operator, to compare: what it wrote or what it returned."""
    if op in ("scatter_rows_", "update_patches_"):
        return [arguments[0]]
    if op == "scatter_key_value_":
        return [arguments[0], arguments[1]]
    if op == "bipartite_match":
        return [out[2][:, ::2]]  # at odd places it is -inf
    outputs = out if isinstance(out, tuple) else (out,)
    return [tensor for tensor in outputs if tensor.is_floating_point()]
