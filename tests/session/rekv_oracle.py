# SPDX-License-Identifier: Apache-2.0
"""ReKV written out: every key explicit, nothing reused, no code shared with the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def rotated(x: Tensor, positions: list[int], inverse: Tensor) -> Tensor:
    """x (H, n, d) turned token by token."""
    out = torch.empty_like(x, dtype=torch.float64)
    half = x.shape[-1] // 2
    for token, position in enumerate(positions):
        for pair in range(half):
            angle = position * float(inverse[pair])
            a, b = x[:, token, pair].double(), x[:, token, pair + half].double()
            out[:, token, pair] = a * math.cos(angle) - b * math.sin(angle)
            out[:, token, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(query, query_at, key, key_at, value, inverse) -> Tensor:
    """Softmax over all keys whose position is not behind the query's; (n, H * d)."""
    q, k = rotated(query, query_at, inverse), rotated(key, key_at, inverse)
    repeat = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeat, 0), value.double().repeat_interleave(repeat, 0)
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    later = torch.tensor(key_at)[None, :] > torch.tensor(query_at)[:, None]
    weights = logits.masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1).float()


@dataclass
class Stored:
    """Raw keys and values of one frame in each layer."""

    tokens: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def mean(self, layer: int, repeat: int) -> Tensor:
        """Mean key repeated for all query heads, (H * d,)."""
        return self.keys[layer].mean(1).repeat_interleave(repeat, 0).flatten()


class RekvOracle:
    """The definition: who sees whom, and at which position."""

    def __init__(self, model, window: int, budget: int) -> None:
        self.lm = model.model.language_model
        self.head = model.lm_head
        self.window, self.budget = window, budget
        self.inverse = self.lm.rotary_emb.inv_freq
        self.frames: list[Stored] = []
        self.retrieved: list[list[int]] = []

    def _project(self, layer, x):
        attn = layer.self_attn
        normed = layer.input_layernorm(x)
        shape = (len(x), -1, attn.head_dim)
        parts = (p(normed).view(shape).transpose(0, 1)
                 for p in (attn.q_proj, attn.k_proj, attn.v_proj))  # fmt: skip
        return tuple(parts)

    def _finish(self, layer, x, out):
        x = x + layer.self_attn.o_proj(out)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def begin(self, prefix: Tensor) -> None:
        self.prefix = self._run(prefix, [], 0)

    def push(self, embeds: Tensor) -> None:
        """A frame sees the prefix and the last frames of at most `window` tokens together."""
        seen, total = [], sum(f.tokens for f in self.frames)
        for frame in self.frames:
            if total <= self.window:
                seen.append(frame)
            else:
                total -= frame.tokens
        self.frames.append(self._run(embeds, [self.prefix, *seen], None))

    def _run(self, x: Tensor, before: list[Stored], _) -> Stored:
        """Encode tokens at the positions right behind those before, which are without gaps."""
        made = Stored(len(x))
        past = sum(stored.tokens for stored in before)
        for number, layer in enumerate(self.lm.layers):
            q, k, v = self._project(layer, x)
            made.keys.append(k)
            made.values.append(v)
            keys = torch.cat([s.keys[number] for s in before] + [k], 1)
            values = torch.cat([s.values[number] for s in before] + [v], 1)
            at = list(range(past, past + len(x)))
            out = attention(q, at, keys, list(range(past + len(x))), values, self.inverse)
            x = self._finish(layer, x, out)
        return made

    def logits(self, prompt: Tensor, question: slice) -> Tensor:
        """Logits behind the prompt, each layer on the blocks that its own queries retrieve."""
        x, self.retrieved = prompt, []
        for number, layer in enumerate(self.lm.layers):
            q, k, v = self._project(layer, x)
            mean = q[:, question].mean(1).flatten()
            repeat = q.shape[0] // k.shape[0]
            scores = [float(mean @ frame.mean(number, repeat)) for frame in self.frames]
            left, taken = self.budget, {}
            for at in sorted(range(len(scores)), key=lambda i: -scores[i]):
                if left > 0:
                    taken[at] = min(left, self.frames[at].tokens)
                    left -= taken[at]
            self.retrieved.append(sorted(taken))
            keys, values = [self.prefix.keys[number]], [self.prefix.values[number]]
            for at in sorted(taken):
                keys.append(self.frames[at].keys[number][:, : taken[at]])
                values.append(self.frames[at].values[number][:, : taken[at]])
            held = sum(part.shape[1] for part in keys)
            at = list(range(held, held + len(x)))
            out = attention(q, at, torch.cat([*keys, k], 1), list(range(held + len(x))),
                            torch.cat([*values, v], 1), self.inverse)  # fmt: skip
            x = self._finish(layer, x, out)
        return self.head(self.lm.norm(x[-1]))
