# SPDX-License-Identifier: Apache-2.0
"""ReKV written out: every key explicit, nothing reused, no code shared with the package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


def rotated(x: Tensor, positions: list[tuple[int, ...]], axes: list[int], inverse: Tensor):
    """x (H, n, d) turned token by token; each pair of channels belongs to an axis."""
    out = torch.empty_like(x, dtype=torch.float64)
    half = x.shape[-1] // 2
    for token, position in enumerate(positions):
        for pair in range(half):
            angle = position[axes[pair]] * float(inverse[pair])
            a, b = x[:, token, pair].double(), x[:, token, pair + half].double()
            out[:, token, pair] = a * math.cos(angle) - b * math.sin(angle)
            out[:, token, pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(query, key, value, at, axes, inverse, seen) -> Tensor:
    """Softmax of the last tokens over the keys that each sees (n, m); (n, H * d)."""
    first = len(at) - query.shape[1]
    q, k = rotated(query, at[first:], axes, inverse), rotated(key, at, axes, inverse)
    repeat = q.shape[0] // k.shape[0]
    k, v = k.repeat_interleave(repeat, 0), value.double().repeat_interleave(repeat, 0)
    logits = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    return (weights @ v).transpose(0, 1).flatten(1).float()


@dataclass
class Stored:
    """Raw keys and values of one frame in each layer."""

    tokens: int
    grid_places: list[tuple[int, int]] | None = None
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def mean(self, layer: int, repeat: int) -> Tensor:
        """Mean key repeated for all query heads, (H * d,)."""
        return self.keys[layer].mean(1).repeat_interleave(repeat, 0).flatten()


class RekvOracle:
    """The definition: who sees whom, and at which position.

    With `sections` positions are time, height and width: `step` is the time between two frames and
    `side` the larger side of their grid.
    """

    def __init__(self, model, window: int, budget: int, sections=(), step=1, side=0) -> None:
        self.step, self.side = step, side
        self.axes = [axis for axis, count in enumerate(sections) for _ in range(count)]
        self.lm = model.model.language_model
        self.head = model.lm_head
        self.window, self.budget = window, budget
        self.axes = self.axes or [0] * (self.lm.layers[0].self_attn.head_dim // 2)
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

    def _inverse(self, layer) -> Tensor:
        return self.lm.rotary_emb.inv_freq

    def _seen(self, layer, queries: Tensor, keys: Tensor, picture: bool) -> Tensor:
        """Which keys (m,), by their number, each query (n, 1) sees: (n, m)."""
        return keys <= queries

    def _order(self, layer, scores: list[float]) -> list[int]:
        """Frames, best first."""
        return sorted(range(len(scores)), key=lambda i: -scores[i])

    def _attend(self, layer, query, key, value, at, picture: bool = False) -> Tensor:
        keys = torch.arange(len(at))
        seen = self._seen(layer, keys[len(at) - query.shape[1] :, None], keys, picture)
        return attention(query, key, value, at, self.axes, self._inverse(layer), seen)

    def begin(self, prefix: Tensor) -> None:
        self.prefix = self._run(prefix, [])

    def _places(self, parts: list[Stored]) -> list[tuple[int, int, int]]:
        """Positions of what lies behind each other: text, frames of one video, text."""
        places, free, origin, video = [], 0, 0, None
        for part in parts:
            if part.grid_places is None:
                if video is not None:
                    last = max(p for place in places for p in place)
                    free, video = max(last + 1, origin + self.side), None
                places += [(free + i,) * 3 for i in range(part.tokens)]
                free += part.tokens
            else:
                if video is None:
                    video, origin = free, free
                places += [(video, origin + r, origin + c) for r, c in part.grid_places]
                video += self.step
        return places

    def push(self, embeds: Tensor, grid_places=None) -> None:
        """A frame sees the prefix and the last frames of at most `window` tokens together."""
        seen, total = [], sum(f.tokens for f in self.frames)
        for frame in self.frames:
            if total <= self.window:
                seen.append(frame)
            else:
                total -= frame.tokens
        self.frames.append(self._run(embeds, [self.prefix, *seen], grid_places))

    def _run(self, x: Tensor, before: list[Stored], grid_places=None) -> Stored:
        """Encode tokens at the positions right behind those before, which are without gaps."""
        made = Stored(len(x), grid_places)
        at = self._places([*before, made])
        for number, layer in enumerate(self.lm.layers):
            q, k, v = self._project(layer, x)
            made.keys.append(k)
            made.values.append(v)
            keys = torch.cat([s.keys[number] for s in before] + [k], 1)
            values = torch.cat([s.values[number] for s in before] + [v], 1)
            out = self._attend(layer, q, keys, values, at, picture=bool(before))
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
            for at in self._order(layer, scores):
                if left > 0:
                    taken[at] = min(left, self.frames[at].tokens)
                    left -= taken[at]
            self.retrieved.append(sorted(taken))
            keys, values = [self.prefix.keys[number]], [self.prefix.values[number]]
            parts = [self.prefix]
            for at in sorted(taken):
                keys.append(self.frames[at].keys[number][:, : taken[at]])
                values.append(self.frames[at].values[number][:, : taken[at]])
                places = self.frames[at].grid_places
                parts.append(Stored(taken[at], places and places[: taken[at]]))
            at = self._places([*parts, Stored(len(x))])
            keys, values = torch.cat([*keys, k], 1), torch.cat([*values, v], 1)
            out = self._attend(layer, q, keys, values, at)
            x = self._finish(layer, x, out)
        return self.head(self.lm.norm(x[-1]))
