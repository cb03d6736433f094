# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: spend where the content changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.cacher.bucketed import BucketedEncoder
from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.policies.base import NONFINITE, Outputs, PolicyBase
from stc_video.cacher.policies.looking import Look, look, motion_state
from stc_video.cacher.ragged import RaggedEncoder
from stc_video.cacher.segments import Segment, SegmentEncoder, take_rows
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, FrameRecord
from stc_video.cacher.stream_pool import StreamPool
from stc_video.cacher.stream_state import Layout, MotionState, Stream
from stc_video.config import CacheConfig
from stc_video.towers.pre_norm import PreNormTower


@dataclass(frozen=True)
class Plan:
    """What is done with a frame.

    Attributes
    ----------
    reason
        Why, in words.
    changed
        How many tokens changed.
    indices
        (1, K) int32 rows to encode, class token and registers among them; None for all rows.
    similarity
        (N,) cosine of each token with the input at which it was last encoded, if compared.
    with_tail
        Whether the last layers run for all tokens.
    is_kept
        Whether what is computed goes into the state.
    """

    reason: str
    changed: int
    indices: Tensor | None = None
    similarity: Tensor | None = None
    with_tail: bool = False
    is_kept: bool = True

    @property
    def kind(self) -> str:
        """The kind of frame, as in :class:`FrameRecord`."""
        if self.indices is None:
            return DENSE
        return CACHED if self.indices.shape[1] else UNCHANGED


class MotionPolicy(PolicyBase):
    """Select the changed tokens once, at the input; they pass through all layers together.

    A token counts as changed when the input of its first attention is no longer similar to the
    one at which it was last encoded, so that slow drift adds up until it is noticed. The number
    of changed tokens is rounded up to a bucket with some room in it, which goes to the tokens
    that are most stale: those that drifted most below the threshold, or waited longest. When
    many tokens are encoded, what the others see has changed a lot, and the last layers run for
    all of them. When most of them changed (a cut, a moving camera), the frame is dense.
    """

    def __init__(self, tower: PreNormTower, config: CacheConfig, pool: StreamPool) -> None:
        super().__init__(tower, config, pool)
        layers = len(self.blocks)
        tail = round(layers / 4) if config.tail_layers is None else config.tail_layers
        if tail >= layers:
            raise ValueError(
                f"attach_cacher: tail_layers must be below the number of layers ({layers}), "
                f"got {tail}"
            )
        self.head = layers - tail
        self._encoders: dict[torch.device, SegmentEncoder] = {}

    def encode(
        self,
        streams: Sequence[Stream],
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode consecutive frames of each stream, each against the state the last one left."""
        if self.is_never_cached:
            return self.encode_guarded(streams, frames, mask, wanted)
        steps = frames.shape[0] // len(streams)
        parts: list[Outputs] = []
        records: list[list[FrameRecord]] = []
        for step in range(steps):
            rows = slice(step, None, steps)
            step_mask = None if mask is None else mask[rows]
            outputs, made = self._encode_next(streams, frames[rows], step_mask, wanted)
            parts.append(outputs)
            records.append(made)
        by_stream = [record for ours in zip(*records, strict=True) for record in ours]
        if steps == 1:
            return parts[0], by_stream
        outputs = {
            layer: torch.stack([part[layer] for part in parts], dim=1).flatten(0, 1)
            for layer in wanted
        }
        return outputs, by_stream

    def _encode_next(
        self,
        streams: Sequence[Stream],
        frames: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode the next frame of each stream, (S, N, C), all of them together."""
        for stream in streams:
            self._check_hidden(stream, wanted)
        normed = self.blocks[0].norm1(frames)
        looks = self._look(streams, frames, normed)
        tokens = frames.shape[1]
        plans = [self._plan(*pair, tokens) for pair in zip(streams, looks, strict=True)]
        outputs = self._carry_out(streams, plans, frames, normed, mask, wanted)
        chosen = zip(streams, plans, strict=True)
        return outputs, [self._record(stream, plan, tokens) for stream, plan in chosen]

    def _carry_out(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        frames: Tensor,
        normed: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
    ) -> Outputs:
        """Encode frames (S, N, C) as planned."""
        chosen = list(zip(streams, plans, strict=True))
        self.place([s for s, plan in chosen if plan.is_kept and s.state is None], wanted)
        segments = []
        outputs: list[Outputs] = [{}] * len(streams)
        for number, (stream, plan) in enumerate(chosen):
            one = slice(number, number + 1)
            one_mask = None if mask is None else mask[one]
            if not plan.is_kept:
                outputs[number] = self.dense_uncached(frames[one], one_mask, wanted)
                continue
            segment = self._begin(stream, plan, frames[one], normed[one], one_mask)
            if segment.rows:
                segments.append(segment)
        if segments:
            self._encoder(frames.device).encode(segments)
        for number, (stream, plan) in enumerate(chosen):
            if plan.is_kept:
                outputs[number] = self._cached_outputs(motion_state(stream), wanted)
        if len(outputs) == 1:
            return outputs[0]
        return {layer: torch.cat([one[layer] for one in outputs]) for layer in wanted}

    def rehearse(
        self, layout: Layout, frames: Tensor, mask: Tensor | None, wanted: frozenset[int]
    ) -> Timings:
        """Run frames (S, N, C) of made-up streams densely and at each bucket, and take the time.

        Room for so many streams is kept from then on, and what can be recorded is.
        """
        key, allocate = self._layout_of_state(layout, wanted)
        self.pool.reserve(frames.shape[0], key, allocate)
        streams = [Stream(f"warm-up {number}", layout) for number in range(frames.shape[0])]
        patches = frames.shape[1] - self.pinned

        def run(plan: Plan) -> None:
            normed = self.blocks[0].norm1(frames)
            self._look(streams, frames, normed)
            self._carry_out(streams, [plan] * len(streams), frames, normed, mask, wanted)

        def seconds(call: Callable[[], object]) -> float:
            return fastest(call, frames.device, self.REHEARSALS)

        try:
            run(Plan("warm-up", patches))
            cached = {}
            for rows in self._bucket_sizes(patches):
                every = torch.arange(rows + self.pinned, dtype=torch.int32, device=frames.device)
                plan = Plan("warm-up", rows, every[None], None, self._has_tail(rows, patches))
                cached[rows + self.pinned] = seconds(lambda: run(plan))  # noqa: B023
            return Timings(seconds(lambda: self.dense_uncached(frames, mask, wanted)), cached)
        finally:
            for stream in streams:
                stream.drop_state()

    def _check_hidden(self, stream: Stream, wanted: frozenset[int]) -> None:
        """Start afresh if hidden states are asked for that were not kept so far."""
        if stream.state is None or wanted - {self.last} <= motion_state(stream).hidden.keys():
            return
        stream.drop_state()
        stream.restart_reason = "hidden states are asked for from here on"

    def _look(self, streams: Sequence[Stream], frames: Tensor, normed: Tensor) -> list[Look]:
        return look(streams, frames, normed, self.config.motion_threshold, self.pinned)

    def _plan(self, stream: Stream, seen: Look, tokens: int) -> Plan:
        """Choose the rows to encode, and let the others grow staler."""
        patches = tokens - self.pinned
        if not seen.is_finite:
            return Plan(NONFINITE, patches, is_kept=False)
        if seen.similarity is None or seen.is_changed is None:
            return Plan(stream.restart_reason or "first frame of the stream", patches)
        count = seen.changed
        rows = 0 if seen.is_repeated else self._bucket(count, patches)
        if rows is None:
            reason = f"{count / max(1, patches):.0%} of the tokens changed"
            return Plan(reason, count, similarity=seen.similarity)
        if rows and not self.pays(rows + self.pinned):
            stream.counters.guarded += 1
            reason = self.timings.describe(rows + self.pinned) if self.timings else ""
            return Plan(reason, count, similarity=seen.similarity)
        if rows == 0:
            nothing = seen.similarity.new_empty((1, 0), dtype=torch.int32)
            return Plan("nothing changed", 0, nothing, seen.similarity)
        state = motion_state(stream)
        state.staleness += (1.0 - seen.similarity) + self.config.age_rate
        rank = torch.where(seen.is_changed, torch.inf, state.staleness)
        rank[: self.pinned] = torch.inf
        order = torch.sort(rank, descending=True, stable=True).indices[: rows + self.pinned]
        indices = order.sort().values
        state.staleness[indices] = 0.0
        with_tail = self._has_tail(rows, patches)
        reason = f"{count} tokens changed, {rows - count} refreshed"
        return Plan(reason, count, indices.int()[None], seen.similarity, with_tail)

    def _bucket_sizes(self, patches: int) -> list[int]:
        return [max(1, math.floor(share * patches)) for share in self.config.buckets]

    def _has_tail(self, rows: int, patches: int) -> bool:
        """Whether the last layers run for all tokens when so many patches are encoded."""
        return self.head < len(self.blocks) and rows >= self.config.tail_from * patches

    def _bucket(self, changed: int, patches: int) -> int | None:
        """How many patches to encode; None for all of them, 0 for nothing to do."""
        sizes = self._bucket_sizes(patches)
        if changed > sizes[-1]:
            return None
        # The refresh yields when the largest bucket is full of changed tokens.
        wanted = min(changed + math.floor(self.config.refresh * patches), sizes[-1])
        return next(size for size in sizes if size >= wanted) if wanted else 0

    def place(self, streams: Sequence[Stream], wanted: frozenset[int]) -> None:
        """Give streams without a state one, which also keeps the hidden states wanted."""
        for stream in streams:
            stream.restart_reason = ""
        if not streams:
            return
        layout = streams[0].layout
        assert layout is not None
        self.pool.place(streams, *self._layout_of_state(layout, wanted))

    def _layout_of_state(
        self, layout: Layout, wanted: frozenset[int]
    ) -> tuple[Hashable, Callable[[int], MotionState]]:
        """What tells states apart, and what allocates some."""
        hidden, has_tail = wanted - {self.last}, self.head < len(self.blocks)

        def allocate(slots: int) -> MotionState:
            return MotionState.empty(layout, len(self.blocks), has_tail, hidden, (slots,))

        return (layout, hidden), allocate

    def _begin(
        self, stream: Stream, plan: Plan, frame: Tensor, normed: Tensor, mask: Tensor | None
    ) -> Segment:
        """Note a frame's input in the state, and say which of its rows are encoded."""
        state, slot = motion_state(stream), stream.slot
        assert slot is not None
        state.last_input.copy_(frame[0])
        if plan.indices is None:
            state.staleness.zero_()
        rows = take_rows(frame, plan.indices)
        segment = Segment(slot, state, rows, plan.indices, mask, plan.with_tail)
        if segment.rows:
            segment.put(state.reference, take_rows(normed, plan.indices))
        return segment

    def _encoder(self, device: torch.device) -> SegmentEncoder:
        """Return what encodes on a device, made when it is first needed."""
        if self._encoders.get(device) is None:
            is_ragged = (
                device.type != "cuda"
                if self.config.batching == "auto"
                else (self.config.batching == "ragged")
            )
            self._encoders[device] = (
                RaggedEncoder(self.blocks, self.head)
                if is_ragged
                else BucketedEncoder(self.blocks, self.head, self.graphs_on(device))
            )
        return self._encoders[device]

    def _cached_outputs(self, state: MotionState, wanted: frozenset[int]) -> Outputs:
        """Copy the cached outputs: what the caller keeps must not change later."""
        cached = state.hidden | {self.last: state.output}
        return {layer: cached[layer].clone()[None] for layer in wanted}

    def _record(self, stream: Stream, plan: Plan, tokens: int) -> FrameRecord:
        """Count a frame and describe it."""
        stream.counters.nonfinite += not plan.is_kept
        if plan.indices is None:
            return self.record(
                stream,
                DENSE,
                plan.reason,
                tokens,
                changed=plan.changed,
                similarity=plan.similarity,
            )
        return self.record(
            stream,
            plan.kind,
            plan.reason,
            tokens,
            cost=self._cost(plan, tokens),
            encoded=plan.indices.shape[1],
            changed=plan.changed,
            similarity=plan.similarity,
            selected=(plan.indices[0],),
        )

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
