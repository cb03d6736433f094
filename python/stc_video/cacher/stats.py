# SPDX-License-Identifier: Apache-2.0
"""Records of what was done with each frame, and totals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from stc_video.cacher.graphs import GraphStats
from stc_video.cacher.guard import Timings
from stc_video.towers.block import Block

DENSE, CACHED, UNCHANGED = "dense", "cached", "unchanged"


@dataclass(frozen=True)
class Operations:
    """Multiply-adds of one layer, as functions of how many tokens are encoded.

    Attributes
    ----------
    channels
        Width of the residual stream.
    mlp
        Multiply-adds of the MLP for one token.
    """

    channels: int
    mlp: int

    @classmethod
    def of(cls, block: Block, channels: int) -> Operations:
        """Count the operations of a block."""
        return cls(channels, block.mlp_operations())

    def rows(self, rows: int, tokens: int) -> int:
        """Count one layer for ``rows`` queries that attend to ``tokens`` keys."""
        width = self.channels
        return rows * (4 * width * width + self.mlp) + 2 * rows * tokens * width

    def dense(self, tokens: int) -> int:
        """Count one layer for all tokens."""
        return self.rows(tokens, tokens)

    def rows_with_fresh_keys(self, rows: int, tokens: int) -> int:
        """Count one layer of ``stc``: as :meth:`rows`, with one projection of all tokens."""
        return self.rows(rows, tokens) + (tokens - rows) * self.channels * self.channels


@dataclass(frozen=True)
class FrameRecord:
    """The way in which one frame was encoded.

    Attributes
    ----------
    stream
        Name of the stream.
    index
        Running number of the frame in its stream, from 0.
    kind
        ``"dense"``, ``"cached"`` or ``"unchanged"`` (returned from the cache, nothing encoded).
    reason
        Why, in words.
    cost
        Operations of the transformer layers as a fraction of a dense frame's.
    changed
        How many tokens were found changed (class token and registers not counted).
    prefix_tokens
        How many tokens at the start are no patches.
    tokens
        Number of tokens, prefix included.
    similarity
        (tokens,) float32, the cosines that the selection went by (``stc``: of the first layer);
        None for a frame that was not compared.
    audited
        Whether the frame was encoded both ways, to measure what caching would have done to it.
        The dense features were handed out, and both encodes are in ``cost``.
    measured
        Mean cosine over the tokens between the cached features of an audited frame and its dense
        ones; None for any other frame.
    passes
        How often the frame went through the layers: 0 if it is unchanged, 2 if it was encoded
        cached and then densely.
    finite
        Whether it is free of NaN and Inf; with any, it is encoded densely and not cached.
    """

    stream: str
    index: int
    kind: str
    reason: str
    cost: float
    changed: int
    prefix_tokens: int
    tokens: int
    similarity: Tensor | None = None
    selected: Sequence[Tensor] = field(default=(), repr=False)
    audited: bool = False
    measured: float | None = None
    passes: int = 1
    finite: bool = True

    @property
    def encoded(self) -> Tensor:
        """(tokens,) float32 on the CPU: the fraction of the layers that re-encoded each token."""
        if self.kind == DENSE:
            return torch.ones(self.tokens)
        heat = torch.zeros(self.tokens)
        for indices in self.selected:
            heat[indices.cpu().long()] += 1.0 / len(self.selected)
        return heat


@dataclass
class Counters:
    """Running totals of one stream.

    ``measured`` is the sum of the audits' cosines, ``error`` the sum of what all frames handed out
    are taken to be off (1 - cosine) by the audits around them.
    """

    frames: int = 0
    dense: int = 0
    cached: int = 0
    unchanged: int = 0
    nonfinite: int = 0
    guarded: int = 0
    resets: int = 0
    tokens_encoded: int = 0
    cost: float = 0.0
    audits: int = 0
    for_promise: int = 0
    measured: float = 0.0
    error: float = 0.0

    def add(self, record: FrameRecord, tokens_encoded: int) -> None:
        """Count one frame."""
        self.frames += 1
        self.dense += record.kind == DENSE
        self.cached += record.kind == CACHED
        self.unchanged += record.kind == UNCHANGED
        self.tokens_encoded += tokens_encoded
        self.cost += record.cost
        if record.measured is not None:
            self.audits += 1
            self.measured += record.measured

    def merge(self, other: Counters) -> None:
        """Add the totals of another stream."""
        for item in fields(self):
            setattr(self, item.name, getattr(self, item.name) + getattr(other, item.name))


@dataclass(frozen=True)
class CacheStats:
    """Totals of one stream or of all of them.

    Attributes
    ----------
    frames, dense, cached, unchanged
        Number of frames, and how many of each kind.
    nonfinite
        Frames with NaN or Inf, which were encoded densely and not cached.
    guarded
        Frames encoded densely because a cached one was measured to be no faster.
    resets
        How often a stream's state was dropped: by ``reset()`` or because the input's layout
        changed.
    tokens_encoded
        Tokens that passed through the layers (``stc``: per layer, rounded to whole tokens).
    cost
        Mean fraction of a dense frame's operations; 1 if there was no frame.
    state_bytes
        Memory held for reuse, in bytes; over all streams, free slots of the pool included.
    packed_bytes
        Memory of the second copies of weights, in bytes (``CacheConfig.pack_weights``); 0 inside
        a stream's own entry.
    timings
        What :meth:`Cacher.warmup` measured, which the guard goes by; None without a warm-up.
    graphs
        What became of recorded passes (CUDA graphs); None where none are used.
    streams
        The same for each stream; empty inside a stream's own entry.
    audits
        Frames that were encoded both ways, cached and densely, to measure the error.
    for_promise
        Frames encoded densely, without an audit, because cached ones would not keep the promise.
    measured_cosine
        Mean cosine between cached and dense features over the audits; None without one. It is that
        of frames encoded the cached way, not of those handed out, many of which may be dense.
    estimated_cosine
        Mean cosine to a dense encode of all frames handed out, as far as the audits tell; None
        without an audit. This is what must not be below ``promised``.
    promised
        The quality in force; None where nothing is promised (``stc``, a fixed threshold, audits
        turned off).
    promise_held
        Whether the promise was kept, in every stream; None if nothing was promised, or nothing
        measured yet.
    """

    frames: int
    dense: int
    cached: int
    unchanged: int
    nonfinite: int
    resets: int
    tokens_encoded: int
    cost: float
    state_bytes: int
    packed_bytes: int = 0
    guarded: int = 0
    timings: Timings | None = None
    graphs: GraphStats | None = None
    streams: dict[str, CacheStats] = field(default_factory=dict)
    audits: int = 0
    for_promise: int = 0
    measured_cosine: float | None = None
    estimated_cosine: float | None = None
    promised: float | None = None
    promise_held: bool | None = None

    def __str__(self) -> str:
        """Sum it up in four lines; ``repr`` has every field."""
        among = f" in {len(self.streams)} streams" if len(self.streams) > 1 else ""
        return (
            f"{self.frames} frames{among}: {self.dense} dense, {self.cached} cached, "
            f"{self.unchanged} unchanged\n"
            f"work: {100 * self.cost:.1f} % of a dense encode\n"
            f"promise: {self._promise()}\n"
            f"memory: {self.state_bytes / 1e6:.1f} MB for reuse, "
            f"{self.packed_bytes / 1e6:.1f} MB of packed weights"
        )

    def _promise(self) -> str:
        if self.promised is None:
            return "none"
        if self.promise_held is None:
            return f"similarity {self.promised:g}, not measured yet"
        word = "held" if self.promise_held else "missed"
        measured = f"{self.estimated_cosine:.4f} by {self.audits} audits"
        return f"similarity {self.promised:g}, {word} ({measured})"

    @classmethod
    def of(cls, counters: Counters, state_bytes: int, promised: float | None = None) -> CacheStats:
        """Close the totals of one stream, which were promised a mean cosine or nothing."""
        audits = counters.audits
        estimated = 1.0 - counters.error / counters.frames if audits else None
        return cls(
            frames=counters.frames,
            dense=counters.dense,
            cached=counters.cached,
            unchanged=counters.unchanged,
            nonfinite=counters.nonfinite,
            resets=counters.resets,
            tokens_encoded=counters.tokens_encoded,
            cost=counters.cost / counters.frames if counters.frames else 1.0,
            state_bytes=state_bytes,
            guarded=counters.guarded,
            audits=audits,
            for_promise=counters.for_promise,
            measured_cosine=counters.measured / audits if audits else None,
            estimated_cosine=estimated,
            promised=promised,
            promise_held=None if promised is None or estimated is None else estimated >= promised,
        )

    @classmethod
    def total(
        cls,
        streams: dict[str, CacheStats],
        removed: CacheStats,
        *,
        free_bytes: int,
        packed_bytes: int,
        timings: Timings | None,
        graphs: GraphStats | None,
    ) -> CacheStats:
        """Sum the totals of the streams, those of removed ones included."""
        each = [*streams.values(), removed]
        frames = sum(s.frames for s in each)
        measured = [s for s in each if s.audits]
        held = [s.promise_held for s in each if s.promise_held is not None]
        return cls(
            frames=frames,
            dense=sum(s.dense for s in each),
            cached=sum(s.cached for s in each),
            unchanged=sum(s.unchanged for s in each),
            nonfinite=sum(s.nonfinite for s in each),
            resets=sum(s.resets for s in each),
            tokens_encoded=sum(s.tokens_encoded for s in each),
            cost=sum(s.cost * s.frames for s in each) / frames if frames else 1.0,
            state_bytes=sum(s.state_bytes for s in each) + free_bytes,
            packed_bytes=packed_bytes,
            guarded=sum(s.guarded for s in each),
            timings=timings,
            graphs=graphs,
            streams=streams,
            audits=sum(s.audits for s in measured),
            for_promise=sum(s.for_promise for s in each),
            measured_cosine=_mean((s.measured_cosine, s.audits) for s in measured),
            estimated_cosine=_mean((s.estimated_cosine, s.frames) for s in measured),
            promised=removed.promised,
            promise_held=all(held) if held else None,
        )


def _mean(weighted: Iterable[tuple[float | None, int]]) -> float | None:
    """Mean of values with weights; None without any."""
    known = [(value, weight) for value, weight in weighted if value is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None
