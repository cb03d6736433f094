# SPDX-License-Identifier: Apache-2.0
"""The two policies once more, straightforwardly: whole tensors, clones, loops, no kernels.

Only the way to the parts of a block (`Block`) knows about model classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from stc_video import CacheConfig
from stc_video.calibration import Aim


class Block:
    """The parts of a Hugging Face vision block, by trial of names."""

    def __init__(self, layer: nn.Module) -> None:
        def first(module: nn.Module, *names: str) -> nn.Module:
            return next(getattr(module, name) for name in names if hasattr(module, name))

        attention = first(layer, "self_attn", "attention")
        inner = getattr(attention, "attention", attention)
        self.norm1, self.norm2 = (
            first(layer, "layer_norm1", "norm1"),
            first(layer, "layer_norm2", "norm2"),
        )
        self.q, self.k, self.v = (
            first(inner, f"{n}_proj", m) for n, m in (("q", "query"), ("k", "key"), ("v", "value"))
        )
        self.out = (
            attention.output.dense
            if hasattr(attention, "output")
            else first(attention, "out_proj", "o_proj")
        )
        self.mlp = layer.mlp
        self.heads = inner.num_heads if hasattr(inner, "num_heads") else inner.num_attention_heads
        self.scale1 = getattr(layer, "layer_scale1", nn.Identity())
        self.scale2 = getattr(layer, "layer_scale2", nn.Identity())

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k / sqrt(d)) v with whole matrices."""
        batch, rows, channels = q.shape
        q, k, v = (
            t.reshape(batch, -1, self.heads, channels // self.heads).transpose(1, 2)
            for t in (q, k, v)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(channels // self.heads), -1)
        return self.scale1(self.out((weights @ v).transpose(1, 2).reshape(batch, rows, channels)))

    def operations(self) -> int:
        """Multiply-adds of the products for one token."""
        linears = [m for m in self.mlp.modules() if isinstance(m, nn.Linear)]
        return sum(m.weight.numel() for m in [*linears, self.q, self.k, self.v, self.out])


def blocks_of(tower: nn.Module) -> list[Block]:
    layers = next(
        module for module in tower.modules()
        if isinstance(module, nn.ModuleList) and hasattr(module[0], "mlp")
    )  # fmt: skip
    return [Block(layer) for layer in layers]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a, b.expand_as(a), dim=-1)


def lowest(similarity: Tensor, count: int, pinned: int) -> Tensor:
    """(F, count) indices of the least similar tokens; the pinned ones are among them."""
    similarity = similarity.clone()
    similarity[:, :pinned] = -2.0
    return similarity.topk(count, dim=-1, largest=False).indices


def put(base: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    where = indices[..., None].expand_as(rows)
    return base.clone().scatter(1, where, rows)


def take(x: Tensor, indices: Tensor) -> Tensor:
    return x.gather(1, indices[..., None].expand(*indices.shape, x.shape[-1]))


@dataclass
class StcOracle:
    """STC-Cacher, step by step as the paper's code computes it."""

    blocks: list[Block]
    ratio: float
    interval: int
    pinned: int
    calls: int = 0
    reference: list[dict[str, Tensor]] = field(default_factory=list)

    def encode(self, x: Tensor) -> Tensor:
        """One call with F frames (F, N, C); every interval-th call is dense."""
        dense = self.calls % self.interval == 0
        self.calls += 1
        kept = []
        for number, block in enumerate(self.blocks):
            x, values = (
                self._dense(block, x) if dense else self._cached(block, x, self.reference[number])
            )
            kept.append(values)
        if dense:
            self.reference = kept
        return x

    def _dense(self, block: Block, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        u = block.norm1(x)
        key, value = block.k(u), block.v(u)
        attention = block.attention(block.q(u), key, value)
        y = x + attention
        mlp = block.scale2(block.mlp(block.norm2(y)))
        kept = {"key": key[-1:], "value": value[-1:], "attention": attention[-1:], "mlp": mlp[-1:]}
        return y + mlp, kept

    def _cached(
        self, block: Block, x: Tensor, ref: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        u = block.norm1(x)
        key = block.k(u)
        count = min(x.shape[1], max(1, math.floor(x.shape[1] * self.ratio)))
        chosen = lowest(cosine(key, ref["key"]), count, self.pinned)
        u_s = take(u, chosen)
        value = put(ref["value"].expand_as(x), chosen, block.v(u_s))
        rows = block.attention(block.q(u_s), key, value)
        y = x + put(ref["attention"].expand_as(x), chosen, rows)
        mlp = block.scale2(block.mlp(block.norm2(take(y, chosen))))
        return y + put(ref["mlp"].expand_as(x), chosen, mlp), {}


@dataclass
class MotionOracle:
    """The `motion` policy for one stream, one frame (1, N, C) at a time."""

    blocks: list[Block]
    pinned: int
    threshold: float | None = None
    aim: Aim = field(default_factory=lambda: CacheConfig().aim())
    buckets: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
    refresh: float = CacheConfig().refresh
    age_rate: float = 0.01
    tail: int = 1
    tail_from: float = 3 / 8
    propagate: float = 0.75
    redo_from: float | None = 0.1
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)  # output of every layer
    reference: Tensor | None = None
    last_input: Tensor | None = None
    stale: list[float] = field(default_factory=list)
    encoded: list[int] = field(default_factory=list)
    level: float = -1.0
    error: float | None = None
    doubt: float = 0.0

    def encode(self, x: Tensor) -> list[Tensor]:
        """Outputs of all layers; ``encoded`` then lists the rows that were encoded."""
        tokens = x.shape[1]
        everything = list(range(tokens))
        if self.reference is None:
            self.level = self.aim.level
            return self._run(x, everything, tail=0, dense=True)
        if torch.equal(x, self.last_input):
            self.encoded = []
            return [output.clone() for output in self.hidden]
        u = self.blocks[0].norm1(x)
        drift = [1.0 - value for value in cosine(u, self.reference)[0].tolist()]
        patches = everything[self.pinned :]
        loosest = 0.25 ** (1 - self.level) * 0.04**self.level
        limit = loosest if self.threshold is None else 1.0 - self.threshold
        changed = [n for n in patches if drift[n] >= limit]
        sizes = [int(share * len(patches)) for share in self.buckets]
        if len(changed) > sizes[-1]:
            return self._run(x, everything, tail=0, dense=True)
        wanted = min(len(changed) + int(self.refresh * len(patches)), sizes[-1])
        rows = min(size for size in sizes if size >= wanted)
        has_tail = self.threshold is not None or (self.aim.tail and self.level > 0.5)
        tail = self.tail if has_tail and rows >= self.tail_from * len(patches) else 0
        if self.doubt and self._cost(rows + self.pinned, tokens, tail) + self.doubt >= 1.0:
            self.doubt *= 0.9
            return self._run(x, everything, tail=0, dense=True)
        self.stale = [s + d + self.age_rate for s, d in zip(self.stale, drift, strict=True)]
        others = sorted(set(patches) - set(changed), key=lambda n: (-self.stale[n], n))
        refreshed = others[: rows - len(changed)]
        chosen = sorted([*everything[: self.pinned], *changed, *refreshed])
        before = self.hidden[-1].clone()
        outputs = self._run(x, chosen, tail=tail, dense=False)
        if not refreshed:
            return outputs
        left_out = sorted(set(everything) - set(chosen))
        if self._must_redo(before, refreshed, len(left_out) / tokens, tail):
            return self._run(x, everything, tail=0, dense=True)
        if not tail:
            self._pass_on(before, refreshed, left_out)
        return [output.clone() for output in self.hidden]

    def _must_redo(self, before: Tensor, refreshed: list[int], left_out: float, tail: int) -> bool:
        drifts = []
        for n in refreshed:
            old, new = (layer_norm(h[0, n], h.shape[2:]) for h in (before, self.hidden[-1]))
            drifts.append(1.0 - float(torch.cosine_similarity(old, new, dim=0)))
        drift = sum(drifts) / len(drifts)
        error = drift * left_out * (0.35 if tail else 1.0)
        self.error = error if self.error is None else (self.error + error) / 2
        step = math.log(max(self.error, 1e-9) / self.aim.error)
        self.level = min(1.0, max(0.0, self.level + 0.06 * max(-1.0, min(1.0, step))))
        redo = self.redo_from is not None and drift > self.redo_from
        self.doubt = (self.doubt + redo) / 2
        return redo

    def _pass_on(self, before: Tensor, refreshed: list[int], left_out: list[int]) -> None:
        output = self.hidden[-1]
        for n in left_out:
            alike = [
                float(torch.cosine_similarity(before[0, n], before[0, m], dim=0)) for m in refreshed
            ]
            weights = torch.softmax(torch.tensor(alike) / 0.05, dim=0).tolist()
            for m, weight in zip(refreshed, weights, strict=True):
                output[0, n] += self.propagate * weight * (output[0, m] - before[0, m])

    def _cost(self, rows: int, tokens: int, tail: int) -> float:
        """Multiply-adds of a cached frame as a fraction of a dense one's."""
        total = dense = 0
        for number, block in enumerate(self.blocks):
            one = block.operations() + 2 * tokens * self.hidden[0].shape[2]
            total += one * (tokens if number >= len(self.blocks) - tail else rows)
            dense += one * tokens
        return total / dense

    def _run(self, x: Tensor, rows: list[int], *, tail: int, dense: bool) -> list[Tensor]:
        if dense:
            self.keys = [torch.zeros_like(x) for _ in self.blocks]
            self.values = [torch.zeros_like(x) for _ in self.blocks]
            self.hidden = [torch.zeros_like(x) for _ in self.blocks]
            self.reference = torch.zeros_like(x)
            self.stale = [0.0] * x.shape[1]
        self.encoded, self.last_input = rows, x.clone()
        self.reference[:, rows] = self.blocks[0].norm1(x)[:, rows]
        for row in rows:
            self.stale[row] = 0.0
        h = x[:, rows]
        for number, block in enumerate(self.blocks):
            if number == len(self.blocks) - tail:
                rows = list(range(x.shape[1]))
                h = self.hidden[number - 1].clone()
            u = block.norm1(h)
            self.keys[number][:, rows] = block.k(u)
            self.values[number][:, rows] = block.v(u)
            h = h + block.attention(block.q(u), self.keys[number], self.values[number])
            h = h + block.scale2(block.mlp(block.norm2(h)))
            self.hidden[number][:, rows] = h
        return [output.clone() for output in self.hidden]
