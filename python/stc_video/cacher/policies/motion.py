# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: spend where the content changes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_kernels import gather_rows, scatter_rows_, token_cosine
from stc_video.cacher.encoder import dense_layers, motion_layers
from stc_video.cacher.policies.base import NONFINITE, Outputs, PolicyBase, finite_frames
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, FrameRecord
from stc_video.cacher.stream_state import MotionState, Stream
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower


@dataclass(frozen=True)
class Plan:
    """What is done with a frame.

    Attributes
    ----------
    indices
        (1, K) int32 rows to encode, class token and registers among them; None for all rows.
    changed
        How many tokens changed.
    similarity
        (N,) cosine of each token with the input at which it was last encoded.
    with_tail
        Whether the last layers run for all tokens.
    """

    indices: Tensor | None
    changed: int
    similarity: Tensor
    with_tail: bool = False


class MotionPolicy(PolicyBase):
    """Select the changed tokens once, at the input; they pass through all layers together.

    A token counts as changed when the input of its first attention is no longer similar to the
    one at which it was last encoded, so that slow drift adds up until it is noticed. The number
    of changed tokens is rounded up to a bucket with some room in it, which goes to the tokens
    that are most stale: those that drifted most below the threshold, or waited longest. When
    many tokens are encoded, what the others see has changed a lot, and the last layers run for
    all of them. When most of them changed (a cut, a moving camera), the frame is dense.
    """

    def __init__(self, tower: Tower, config: CacheConfig) -> None:
        super().__init__(tower, config)
        layers = len(self.blocks)
        tail = round(layers / 4) if config.tail_layers is None else config.tail_layers
        if tail >= layers:
            raise ValueError(
                f"attach_cacher: tail_layers must be below the number of layers ({layers}), "
                f"got {tail}"
            )
        self.head = layers - tail

    def encode(
        self, stream: Stream, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode consecutive frames of a stream, each against the state the last one left."""
        parts: list[Outputs] = []
        records = []
        for number, finite in enumerate(finite_frames(frames)):
            frame = frames[number, None]
            frame_mask = None if mask is None else mask[number, None]
            if finite:
                outputs, record = self._encode_frame(stream, frame, frame_mask, wanted)
            else:
                stream.counters.nonfinite += 1
                outputs = self.dense_uncached(frame, frame_mask, wanted)
                record = self.record(stream, DENSE, NONFINITE, frames.shape[1])
            parts.append(outputs)
            records.append(record)
        if len(parts) == 1:
            return parts[0], records
        return {layer: torch.cat([part[layer] for part in parts]) for layer in wanted}, records

    def _encode_frame(
        self, stream: Stream, frame: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> tuple[Outputs, FrameRecord]:
        state, tokens = stream.state, frame.shape[1]
        if isinstance(state, MotionState) and not wanted - {self.last} <= state.hidden.keys():
            stream.state = state = None
            stream.restart_reason = "hidden states are asked for from here on"
        if not isinstance(state, MotionState):
            reason = stream.restart_reason or "first frame of the stream"
            outputs = self._encode_dense(stream, frame, mask, wanted)
            return outputs, self.record(stream, DENSE, reason, tokens)
        normed = self.blocks[0].norm1(frame)
        plan = self._plan(frame, normed, state)
        state.last_input.copy_(frame[0])
        if plan.indices is None:
            outputs = self._encode_dense(stream, frame, mask, wanted)
            reason = f"{plan.changed / max(1, tokens - self.pinned):.0%} of the tokens changed"
            return outputs, self.record(
                stream, DENSE, reason, tokens, changed=plan.changed, similarity=plan.similarity
            )
        count = plan.indices.shape[1]
        if count == 0:
            kind, reason = UNCHANGED, "nothing changed"
        else:
            self._encode_cached(state, frame, normed, mask, plan)
            refreshed = count - plan.changed - self.pinned
            kind, reason = CACHED, f"{plan.changed} tokens changed, {refreshed} refreshed"
        record = self.record(
            stream,
            kind,
            reason,
            tokens,
            cost=self._cost(plan, tokens),
            encoded=count,
            changed=plan.changed,
            similarity=plan.similarity,
            selected=(plan.indices[0],),
        )
        return self._cached_outputs(state, wanted), record

    def _plan(self, frame: Tensor, normed: Tensor, state: MotionState) -> Plan:
        """Choose the rows to encode, and let the others grow staler."""
        similarity = token_cosine(normed, state.reference)[0]
        changed = ~(similarity > self.config.motion_threshold)
        changed[: self.pinned] = False
        count = int(changed.sum())
        # A frame in which a token changed is no repetition, so most frames need no comparison.
        is_repeated = count == 0 and torch.equal(frame[0], state.last_input)
        patches = frame.shape[1] - self.pinned
        rows = 0 if is_repeated else self._bucket(count, patches)
        if rows is None:
            return Plan(None, count, similarity)
        if rows == 0:
            return Plan(frame.new_empty((1, 0), dtype=torch.int32), 0, similarity)
        state.staleness += (1.0 - similarity) + self.config.age_rate
        rank = torch.where(changed, torch.inf, state.staleness)
        rank[: self.pinned] = torch.inf
        order = torch.sort(rank, descending=True, stable=True).indices[: rows + self.pinned]
        indices = order.sort().values
        state.staleness[indices] = 0.0
        with_tail = self.head < len(self.blocks) and rows >= self.config.tail_from * patches
        return Plan(indices.int()[None], count, similarity, with_tail)

    def _bucket(self, changed: int, patches: int) -> int | None:
        """How many patches to encode; None for all of them, 0 for nothing to do."""
        sizes = [max(1, math.floor(share * patches)) for share in self.config.buckets]
        if changed > sizes[-1]:
            return None
        # The refresh yields when the largest bucket is full of changed tokens.
        wanted = min(changed + math.floor(self.config.refresh * patches), sizes[-1])
        return next(size for size in sizes if size >= wanted) if wanted else 0

    def _encode_dense(
        self, stream: Stream, frame: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> Outputs:
        """Encode all tokens and start the state from them."""
        assert stream.layout is not None
        state = stream.state
        if not isinstance(state, MotionState):
            has_tail = self.head < len(self.blocks)
            hidden = wanted - {self.last}
            state = MotionState.empty(stream.layout, len(self.blocks), has_tail, hidden)
        state.reference.copy_(self.blocks[0].norm1(frame)[0])
        state.last_input.copy_(frame[0])
        state.staleness.zero_()
        self._encode_rest(state, frame, mask, first=0)
        stream.state, stream.restart_reason = state, ""
        return self._cached_outputs(state, wanted)

    def _encode_cached(
        self, state: MotionState, frame: Tensor, normed: Tensor, mask: Tensor | None, plan: Plan
    ) -> None:
        """Encode the planned rows into the state."""
        indices = plan.indices
        assert indices is not None
        scatter_rows_(state.reference[None], indices, gather_rows(normed, indices))
        rows = motion_layers(
            self.blocks, gather_rows(frame, indices), indices, state, mask, range(self.head)
        )
        if state.tail_input is not None:
            scatter_rows_(state.tail_input[None], indices, rows)
        if plan.with_tail:
            assert state.tail_input is not None
            self._encode_rest(state, state.tail_input[None], mask, first=self.head)
        else:
            tail = range(self.head, len(self.blocks))
            rows = motion_layers(self.blocks, rows, indices, state, mask, tail)
            scatter_rows_(state.output[None], indices, rows)

    def _encode_rest(
        self, state: MotionState, x: Tensor, mask: Tensor | None, *, first: int
    ) -> None:
        """Run the layers from ``first`` on for all tokens (1, N, C) into the state."""
        for layer, trace in enumerate(dense_layers(self.blocks[first:], x, mask), start=first):
            state.keys[layer].copy_(trace.key[0])
            state.values[layer].copy_(trace.value[0])
            if layer in state.hidden:
                state.hidden[layer].copy_(trace.output[0])
            if state.tail_input is not None and layer == self.head - 1:
                state.tail_input.copy_(trace.output[0])
            if layer == self.last:
                state.output.copy_(trace.output[0])

    def _cached_outputs(self, state: MotionState, wanted: frozenset[int]) -> Outputs:
        """Copy the cached outputs: what the caller keeps must not change later."""
        cached = state.hidden | {self.last: state.output}
        return {layer: cached[layer].clone()[None] for layer in wanted}

    def _cost(self, plan: Plan, tokens: int) -> float:
        """Operations of a cached frame as a fraction of a dense one's."""
        assert plan.indices is not None
        rows = plan.indices.shape[1]
        head = sum(operations.rows(rows, tokens) for operations in self.operations[: self.head])
        tail_rows = tokens if plan.with_tail else rows
        tail = sum(
            operations.rows(tail_rows, tokens) for operations in self.operations[self.head :]
        )
        return (head + tail) / self.dense_operations(tokens)
