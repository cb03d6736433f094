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
    )
}


def values_of(op: str, out: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The floating-point results of an operator, to compare: what it wrote or what it returned."""
    if op == "scatter_rows_":
        return [arguments[0]]
    if op == "scatter_key_value_":
        return [arguments[0], arguments[1]]
    outputs = out if isinstance(out, tuple) else (out,)
    return [tensor for tensor in outputs if tensor.is_floating_point()]
