# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a frame are encoded, and when all of them are.

A policy encodes frames of one stream and keeps that stream's state. It gets the residual stream
before the first block and returns the outputs of the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stc_kernels import (
    gather_rows,
    scatter_rows_,
    select_changed,
    select_changed_below,
    token_cosine,
)
from stc_video.cacher.encoder import (
    dense_layers,
    motion_layers,
    repeated,
    stc_layer,
)
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, FrameRecord, Operations
from stc_video.cacher.stream_state import MotionState, StcState, Stream
from stc_video.config import MOTION_THRESHOLD, CacheConfig
from stc_video.towers.pre_norm import PreNormTower

#: outputs of the layers that were asked for, by layer number, each (F, N, C)
Outputs = dict[int, Tensor]

NONFINITE = "NaN or Inf in the input: encoded densely and not cached"


class Policy(Protocol):
    """What the handle asks of a policy."""

    def encode(
        self, stream: Stream, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode the next frames (F, N, C) of a stream; ``wanted`` are the layers to return."""
        ...


class _PolicyBase:
    """What both policies share: the tower's geometry, dense frames, and the book-keeping."""

    def __init__(self, tower: PreNormTower, config: CacheConfig) -> None:
        self.blocks = tower.blocks
        self.pinned = tower.prefix_tokens
        self.config = config
        channels = _channels(tower)
        self.operations = [Operations.of(block, channels) for block in tower.blocks]

    @property
    def last(self) -> int:
        """Number of the last layer."""
        return len(self.blocks) - 1

    def dense_operations(self, tokens: int) -> int:
        """Operations of a dense frame."""
        return sum(operations.dense(tokens) for operations in self.operations)

    def dense_uncached(
        self, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> Outputs:
        """Encode frames densely and keep nothing."""
        traces = enumerate(dense_layers(self.blocks, frames, mask))
        return {layer: trace.output for layer, trace in traces if layer in wanted}

    def record(
        self,
        stream: Stream,
        kind: str,
        reason: str,
        tokens: int,
        *,
        cost: float = 1.0,
        encoded: int | None = None,
        changed: int | None = None,
        similarity: Tensor | None = None,
        selected: Sequence[Tensor] = (),
    ) -> FrameRecord:
        """Count a frame and describe it."""
        record = FrameRecord(
            stream=stream.name,
            index=stream.counters.frames,
            kind=kind,
            reason=reason,
            cost=cost,
            changed=tokens - self.pinned if changed is None else changed,
            prefix_tokens=self.pinned,
            tokens=tokens,
            similarity=similarity,
            selected=selected,
        )
        stream.counters.add(record, tokens if encoded is None else encoded)
        return record


@dataclass(frozen=True)
class _Plan:
    """What ``motion`` does with a frame: rows to encode (1, K), or None for all of them."""

    indices: Tensor | None
    changed: int
    similarity: Tensor


class MotionPolicy(_PolicyBase):
    """Select the changed tokens once, at the input; they pass through all layers together.

    A token counts as changed when the input of its first attention is no longer similar to the
    one at which it was last encoded, so that slow drift adds up until it is noticed. The number
    of changed tokens is rounded up to a bucket, and the places left over go to the tokens whose
    context is oldest.
    """

    def __init__(self, tower: PreNormTower, config: CacheConfig) -> None:
        super().__init__(tower, config)
        self.threshold = MOTION_THRESHOLD if config.threshold is None else config.threshold
        if config.tail_layers >= len(self.blocks):
            raise ValueError(
                f"attach_cacher: tail_layers must be below the number of layers "
                f"({len(self.blocks)}), got {config.tail_layers}"
            )
        self.head = len(self.blocks) - config.tail_layers

    def encode(
        self, stream: Stream, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode consecutive frames of a stream, each against the state the last one left."""
        rows: dict[int, list[Tensor]] = {layer: [] for layer in wanted}
        records = []
        finite = finite_frames(frames)
        for number in range(frames.shape[0]):
            frame = frames[number, None]
            frame_mask = None if mask is None else mask[number, None]
            outputs, record = self._encode_frame(
                stream, frame, frame_mask, wanted, finite=finite[number]
            )
            records.append(record)
            for layer in wanted:
                rows[layer].append(outputs[layer])
        return {layer: _concatenate(parts) for layer, parts in rows.items()}, records

    def _encode_frame(
        self,
        stream: Stream,
        frame: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        *,
        finite: bool,
    ) -> tuple[Outputs, FrameRecord]:
        tokens = frame.shape[1]
        if not finite:
            stream.counters.nonfinite += 1
            outputs = self.dense_uncached(frame, mask, wanted)
            return outputs, self.record(stream, DENSE, NONFINITE, tokens)
        state = stream.state
        hidden = wanted - {self.last}
        if isinstance(state, MotionState) and not hidden <= state.hidden.keys():
            stream.state, state = None, None
            stream.restart_reason = "hidden states are asked for from here on"
        if not isinstance(state, MotionState):
            reason = stream.restart_reason or "first frame of the stream"
            return self._encode_dense(stream, frame, mask, wanted, hidden, reason, None)
        normed = self.blocks[0].norm1(frame)
        plan = self._plan(frame, normed, state)
        if plan.indices is None:
            share = plan.changed / max(1, tokens - self.pinned)
            reason = f"{share:.0%} of the tokens changed"
            return self._encode_dense(stream, frame, mask, wanted, hidden, reason, plan)
        if plan.indices.shape[1] == 0:
            state.last_input.copy_(frame[0])
            record = self.record(
                stream,
                UNCHANGED,
                "nothing changed",
                tokens,
                cost=0.0,
                encoded=0,
                changed=0,
                similarity=plan.similarity,
            )
            return self._cached_outputs(state, wanted), record
        return self._encode_cached(stream, frame, normed, mask, wanted, plan)

    def _plan(self, frame: Tensor, normed: Tensor, state: MotionState) -> _Plan:
        """Choose the rows to encode."""
        similarity = token_cosine(normed, state.reference)[0]
        tokens = similarity.shape[0]
        changed = ~(similarity > self.threshold)
        changed[: self.pinned] = False
        stale = state.encoded_at < state.changed_at
        # One transfer for everything the host has to know.
        count, is_stale, same = torch.stack(
            [changed.sum(), stale.any().long(), repeated(frame, state.last_input).long()]
        ).tolist()
        if count == 0 and (same or not is_stale or self.config.refresh == 0.0):
            return _Plan(frame.new_empty((1, 0), dtype=torch.int32), 0, similarity)
        refreshed = math.floor(self.config.refresh * tokens) if is_stale or count else 0
        room = self._bucket(count + self.pinned + refreshed, tokens)
        if room is None:
            return _Plan(None, count, similarity)
        # Changed tokens first, the least similar ones leading, then those encoded longest ago.
        age = (state.tick - state.encoded_at).float()
        rank = torch.where(changed, 2.0**30 - similarity, age)
        rank[: self.pinned] = torch.inf
        order = torch.sort(rank, descending=True, stable=True).indices[:room]
        return _Plan(order.sort().values.int()[None], count, similarity)

    def _bucket(self, wanted: int, tokens: int) -> int | None:
        """Round a number of rows up to the next bucket; None if it exceeds them all."""
        for fraction in self.config.buckets:
            if (rows := max(1, math.floor(fraction * tokens))) >= wanted:
                return rows
        return None

    def _encode_dense(
        self,
        stream: Stream,
        frame: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        hidden: frozenset[int],
        reason: str,
        plan: _Plan | None,
    ) -> tuple[Outputs, FrameRecord]:
        """Encode all tokens and start the state from them."""
        assert stream.layout is not None
        state = stream.state
        if not isinstance(state, MotionState):
            state = MotionState.empty(
                stream.layout, len(self.blocks), self.config.tail_layers, hidden
            )
        outputs: Outputs = {}
        for layer, trace in enumerate(dense_layers(self.blocks, frame, mask)):
            if layer == 0:
                state.reference.copy_(trace.normed[0])
            if layer < self.head:
                state.keys[layer].copy_(trace.key[0])
                state.values[layer].copy_(trace.value[0])
            if layer in state.hidden:
                state.hidden[layer].copy_(trace.output[0])
            if state.tail_input is not None and layer == self.head - 1:
                state.tail_input.copy_(trace.output[0])
            if layer in wanted:
                outputs[layer] = trace.output
        state.output.copy_(outputs[self.last][0])
        state.last_input.copy_(frame[0])
        state.tick += 1
        state.changed_at = state.tick
        state.encoded_at.fill_(state.tick)
        stream.state, stream.restart_reason = state, ""
        record = self.record(
            stream,
            DENSE,
            reason,
            frame.shape[1],
            changed=None if plan is None else plan.changed,
            similarity=None if plan is None else plan.similarity,
        )
        return outputs, record

    def _encode_cached(
        self,
        stream: Stream,
        frame: Tensor,
        normed: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        plan: _Plan,
    ) -> tuple[Outputs, FrameRecord]:
        state, indices = stream.state, plan.indices
        assert isinstance(state, MotionState)
        assert indices is not None
        tokens, count = frame.shape[1], indices.shape[1]
        state.tick += 1
        if plan.changed:
            state.changed_at = state.tick
        state.encoded_at[indices[0].long()] = state.tick
        state.last_input.copy_(frame[0])
        scatter_rows_(state.reference[None], indices, gather_rows(normed, indices))
        rows = motion_layers(
            self.blocks[: self.head], gather_rows(frame, indices), indices, state, mask
        )
        if state.tail_input is None:
            scatter_rows_(state.output[None], indices, rows)
        else:
            scatter_rows_(state.tail_input[None], indices, rows)
            self._encode_tail(state, state.tail_input, mask)
        record = self.record(
            stream,
            CACHED,
            _describe_changes(plan.changed, count, self.pinned),
            tokens,
            cost=self._cost(count, tokens),
            encoded=count,
            changed=plan.changed,
            similarity=plan.similarity,
            selected=(indices[0],),
        )
        return self._cached_outputs(state, wanted), record

    def _encode_tail(self, state: MotionState, tail_input: Tensor, mask: Tensor | None) -> None:
        """Run the last layers for all tokens, on top of the cached middle features."""
        tail = dense_layers(self.blocks[self.head :], tail_input[None], mask)
        for layer, trace in enumerate(tail, start=self.head):
            if layer in state.hidden:
                state.hidden[layer].copy_(trace.output[0])
            if layer == self.last:
                state.output.copy_(trace.output[0])

    def _cached_outputs(self, state: MotionState, wanted: frozenset[int]) -> Outputs:
        """Copy the cached outputs: what the caller keeps must not change later."""
        cached = state.hidden | {self.last: state.output}
        return {layer: cached[layer].clone()[None] for layer in wanted}

    def _cost(self, rows: int, tokens: int) -> float:
        head = sum(operations.rows(rows, tokens) for operations in self.operations[: self.head])
        tail = sum(operations.dense(tokens) for operations in self.operations[self.head :])
        return (head + tail) / self.dense_operations(tokens)


class StcPolicy(_PolicyBase):
    """STC-Cacher (arXiv 2512.00891): every ``interval``-th call dense, in between a fixed share.

    The last frame of a dense call becomes the reference. All frames of a cached call are compared
    with that one, each layer for itself, and cached calls leave it as it is.
    """

    #: With a threshold, the number of tokens is rounded up to a multiple of this share of them.
    THRESHOLD_STEP = 1 / 16

    def encode(
        self, stream: Stream, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode one call's frames of a stream."""
        finite = finite_frames(frames)
        has_state = isinstance(stream.state, StcState)
        if not any(finite):
            # Nothing to learn from: the schedule waits.
            dense, encode = True, self._encode_dense
        else:
            dense = not has_state or stream.calls % self.config.interval == 0
            encode = self._encode_dense if dense else self._encode_cached
            stream.calls += 1
        reason = "first frame of the stream" if not has_state else "scheduled refresh"
        if stream.restart_reason and any(finite):
            reason, stream.restart_reason = stream.restart_reason, ""
        return encode(stream, frames, mask, wanted, finite, reason if dense else "")

    def _encode_dense(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode all tokens; the last finite frame becomes the reference."""
        assert stream.layout is not None
        state = stream.state
        usable = [number for number, is_finite in enumerate(finite) if is_finite]
        if not isinstance(state, StcState) and usable:
            state = StcState.empty(stream.layout, len(self.blocks))
        by_keys = self.config.metric == "keys"
        outputs: Outputs = {}
        for layer, trace in enumerate(dense_layers(self.blocks, frames, mask)):
            if usable and isinstance(state, StcState):
                compared, reused = trace.key[usable[-1]], trace.value[usable[-1]]
                if not by_keys:
                    compared, reused = reused, compared
                state.compared[layer].copy_(compared)
                state.reused[layer].copy_(reused)
                state.update[layer].copy_(trace.update[usable[-1]])
            if layer in wanted:
                outputs[layer] = trace.output
        stream.state = state
        return outputs, [self._dense_record(stream, frames, ok, reason) for ok in finite]

    def _dense_record(
        self, stream: Stream, frames: Tensor, finite: bool, reason: str
    ) -> FrameRecord:
        stream.counters.nonfinite += not finite
        return self.record(stream, DENSE, reason if finite else NONFINITE, frames.shape[1])

    def _encode_cached(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Re-encode some tokens per layer; frames with NaN or Inf are encoded densely instead."""
        if not all(finite):
            return self._encode_mixed(stream, frames, mask, wanted, finite, reason)
        state = stream.state
        assert isinstance(state, StcState)
        tokens = frames.shape[1]
        outputs: Outputs = {}
        selected, done, x = [], 0, frames
        first_similarity: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            x, indices, similarity = stc_layer(
                block,
                x,
                state,
                layer,
                select=self._select,
                by_keys=self.config.metric == "keys",
                mask=mask,
            )
            if layer == 0:
                first_similarity = similarity
            if layer in wanted:
                outputs[layer] = x
            selected.append(indices)
            done += self.operations[layer].rows_with_fresh_keys(indices.shape[1], tokens)
        encoded = round(sum(indices.shape[1] for indices in selected) / len(selected))
        assert first_similarity is not None
        records = [
            self.record(
                stream,
                CACHED,
                f"{encoded} of {tokens} tokens re-encoded in each layer",
                tokens,
                cost=done / self.dense_operations(tokens),
                encoded=encoded,
                changed=max(0, encoded - self.pinned),
                similarity=first_similarity[number],
                selected=[indices[number] for indices in selected],
            )
            for number in range(frames.shape[0])
        ]
        return outputs, records

    def _encode_mixed(
        self,
        stream: Stream,
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
        finite: list[bool],
        reason: str,
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode a cached call frame by frame, those with NaN or Inf densely."""
        parts, records = [], []
        for number, is_finite in enumerate(finite):
            frame = frames[number, None]
            frame_mask = None if mask is None else mask[number, None]
            if is_finite:
                outputs, made = self._encode_cached(
                    stream, frame, frame_mask, wanted, [True], reason
                )
            else:
                outputs = self.dense_uncached(frame, frame_mask, wanted)
                made = [self._dense_record(stream, frame, False, reason)]
            parts.append(outputs)
            records += made
        return {layer: torch.cat([part[layer] for part in parts]) for layer in wanted}, records

    def _select(self, fresh: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the tokens that a layer re-encodes."""
        tokens = fresh.shape[1]
        if self.config.threshold is None:
            # floor(ratio N), as in the paper; class token and registers are among them.
            share = self.config.ratio
        else:
            counts = select_changed_below(
                fresh, cached, self.config.threshold, tokens, pinned=self.pinned
            )[1]
            steps = math.ceil(int(counts.max()) / (tokens * self.THRESHOLD_STEP))
            share = min(1.0, steps * self.THRESHOLD_STEP)
        count = min(tokens, max(1, self.pinned, math.floor(share * tokens)))
        return select_changed(fresh, cached, count, pinned=self.pinned)


def finite_frames(frames: Tensor) -> list[bool]:
    """Say for each frame (F, N, C) whether it is free of NaN and Inf."""
    # A sum shows any of them, at the price of one pass and one transfer.
    sums = frames.sum(dim=(1, 2), dtype=torch.float32)
    return [bool(value) for value in torch.isfinite(sums).tolist()]


def make_policy(tower: PreNormTower, config: CacheConfig) -> Policy:
    """Make the policy that the settings name."""
    return (MotionPolicy if config.policy == "motion" else StcPolicy)(tower, config)


def _channels(tower: PreNormTower) -> int:
    """Width of the residual stream, read off the first query projection."""
    weight = tower.blocks[0].query.weight
    assert isinstance(weight, Tensor)
    return weight.shape[1]


def _concatenate(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _describe_changes(changed: int, encoded: int, pinned: int) -> str:
    return f"{changed} tokens changed, {max(0, encoded - changed - pinned)} refreshed"
