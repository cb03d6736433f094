# SPDX-License-Identifier: Apache-2.0
"""The operators once more, in float64 and as simple as can be. Nothing here is shared with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def cosine(current: Tensor, reference: Tensor) -> Tensor:
    x, y = current.double(), reference.double().expand(current.shape)
    out = torch.empty(x.shape[:2], dtype=torch.float64)
    for b in range(x.shape[0]):
        for n in range(x.shape[1]):
            norms = max(float(x[b, n].norm()), 1e-8) * max(float(y[b, n].norm()), 1e-8)
            out[b, n] = x[b, n] @ y[b, n] / norms
    return out


def k_first(keys: list[float], k: int) -> list[int]:
    """Positions of the k smallest keys, ties to the lower position, ascending."""
    return sorted(sorted(range(len(keys)), key=lambda n: (keys[n], n))[:k])


def changed_keys(similarity: Tensor, pinned: int) -> list[float]:
    """Sort keys of `select_changed`: pinned, then NaN, then ascending similarity."""
    keys = []
    for n, value in enumerate(similarity.tolist()):
        keys.append(-1e9 if n < pinned else -1e6 if math.isnan(value) else value)
    return keys


def gather(x: Tensor, indices: Tensor) -> Tensor:
    out = torch.zeros((*indices.shape, x.shape[2]), dtype=x.dtype)
    for b, row in enumerate(indices.tolist()):
        for i, n in enumerate(row):
            if n >= 0:
                out[b, i] = x[b, n]
    return out


def scatter(x: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    out = x.clone()
    for b, row in enumerate(indices.tolist()):
        for i, n in enumerate(row):
            if n >= 0:
                out[b, n] = rows[b, i]
    return out


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    out = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    out = out if weight is None else out * weight.double()
    return out if bias is None else out + bias.double()


def attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> Tensor:
    q, k, v = query.double(), key.double(), value.double()
    out = torch.empty(q.shape, dtype=torch.float64)
    per_group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = scale * q[b, :, h] @ k[b, :, h // per_group].T
            if key_bias is not None:
                logits += key_bias[b].double()
            out[b, :, h] = torch.softmax(logits, -1) @ v[b, :, h // per_group]
    return out


def gelu(x: Tensor, approximate: str) -> Tensor:
    if approximate == "quick":
        return x * torch.sigmoid(1.702 * x)
    if approximate == "tanh":
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / 2 * torch.erfc(-x / math.sqrt(2))


def saliency(
    tokens: Tensor, memory: Tensor | None, method: str, alpha: float, channels: Tensor | None
) -> Tensor:
    """Scores of algorithms in the paper's words, on the selected channels only."""
    x = tokens.double()
    past = None if memory is None else memory.double()
    if channels is not None:
        x = x[..., channels]
        past = None if past is None else past[channels]

    def unit(v: Tensor) -> Tensor:
        return v / v.norm(dim=-1, keepdim=True).clamp_min(1e-12)

    def score(z: Tensor, anchor: Tensor) -> Tensor:
        if method == "dual_anchor":
            return 1 - z @ unit(anchor)
        squared = (z - anchor).square().sum(-1)
        total = torch.zeros_like(squared)
        for width in (0.125, 0.25, 0.5, 1.0, 2.0):
            total += torch.exp(-squared / (2 * width))
        return -2 * total

    out = []
    for frame in x:
        z = unit(frame)
        spatial = score(z, z.mean(0))
        if past is None:
            out.append(spatial)
        else:
            out.append(alpha * score(z, unit(past)) + (1 - alpha) * spatial)
    return torch.stack(out) if out else torch.zeros(x.shape[:2], dtype=torch.float64)


def assert_selects(indices: Tensor, keys: list[float], k: int, slack: float = 1e-5) -> None:
    """Check one row of chosen indices against float64 keys.

    Two backends may differ only where two keys differ by less than ``slack``.
    """
    chosen = indices.tolist()
    assert chosen == sorted(set(chosen)), f"not ascending or not unique: {chosen}"
    expected = k_first(keys, k)
    assert len(chosen) == len(expected)
    if chosen == expected:
        return
    limit = max(keys[n] for n in expected)
    for n in set(chosen) ^ set(expected):
        assert abs(keys[n] - limit) < slack, f"token {n} has key {keys[n]}, the limit is {limit}"
