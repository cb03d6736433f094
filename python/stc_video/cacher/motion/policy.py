# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: spend where the content changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.motion.bucketed import BucketedEncoder
from stc_video.cacher.motion.changes import FrameChange, compare
from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.learning import Learner
from stc_video.cacher.motion.plan import Plan, Planner
from stc_video.cacher.motion.promise import PromiseKeeper, final_norms
from stc_video.cacher.motion.ragged import RaggedEncoder
from stc_video.cacher.motion.segments import Segment, SegmentEncoder, take_rows
from stc_video.cacher.motion.state import (
    MotionHistory,
    MotionState,
    motion_history,
    motion_state,
)
from stc_video.cacher.policy import Outputs, PolicyBase
from stc_video.cacher.stats import CACHED, DENSE, FrameRecord
from stc_video.cacher.streams import Layout, Stream, StreamPool
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower


class MotionPolicy(PolicyBase):
    """Select the changed tokens once, at the input; they pass through all layers together.

    A token counts as changed when the input of its first attention is no longer similar to the
    one at which it was last encoded, so that slow drift adds up until it is noticed. The number
    of changed tokens is rounded up to a bucket with some room in it, which goes to the tokens
    that are most stale: those that drifted most below the threshold, or waited longest. When
    most tokens changed (a cut, a moving camera), the frame is dense.

    What the refreshed tokens' outputs move by tells how stale the others are. It is passed on to
    them (``propagation.py``), it sets the threshold, and whether the last layers run for all
    tokens (``control.py``), and where it is large, the frame is encoded densely after all.
    """

    def __init__(self, tower: Tower, config: CacheConfig, pool: StreamPool) -> None:
        super().__init__(tower, config, pool)
        redo_from = config.redo_from
        self.control = EffortControl(config.aim(), redo_from, config.threshold)
        self.keeper = None if config.promised is None else PromiseKeeper(config.promised)
        self.planner = Planner(
            config,
            self.control,
            self.keeper,
            self.prefix_tokens,
            self.operations,
            self.pays,
            self.describe_guard,
        )
        norms = final_norms(tower)
        self.learner = Learner(self.control, self.keeper, norms, config.propagate, self._cost)
        self._encoders: dict[torch.device, SegmentEncoder] = {}

    def encode(
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode consecutive frames of each stream, each against the state the last one left."""
        if self.is_never_cached:
            return self.encode_guarded(streams, batch)
        steps = len(batch.frames) // len(streams)
        parts: list[Outputs] = []
        records: list[list[FrameRecord]] = []
        for step in range(steps):
            outputs, frame_records = self._encode_next(streams, batch[step::steps])
            parts.append(outputs)
            records.append(frame_records)
        by_stream = [record for ours in zip(*records, strict=True) for record in ours]
        if steps == 1:
            return parts[0], by_stream
        outputs = {
            layer: torch.stack([part[layer] for part in parts], dim=1).flatten(0, 1)
            for layer in batch.output_layers
        }
        return outputs, by_stream

    def _encode_next(
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Outputs, list[FrameRecord]]:
        """Encode the next frame of each stream, all of them together."""
        for stream in streams:
            self._restart_without_hidden(stream, batch.output_layers)
        compared, changes = self._compare(streams, batch.frames)
        tokens = batch.tokens
        plans = [
            self.planner.plan(stream, change, tokens)
            for stream, change in zip(streams, changes, strict=True)
        ]
        for stream, plan in zip(streams, plans, strict=True):
            self.planner.commit(stream, plan)
        outputs, plans = self._carry_out(streams, plans, batch, compared)
        return outputs, [
            self._record(stream, plan, tokens) for stream, plan in zip(streams, plans, strict=True)
        ]

    def _compared(self, frames: Tensor) -> Tensor:
        """Input of the first attention, (S, N, C) like the frames, which shows the changes."""
        normed: Tensor = self.blocks[0].norm1(frames)
        return normed

    def _compare(
        self, streams: Sequence[Stream], frames: Tensor
    ) -> tuple[Tensor, list[FrameChange]]:
        """Compare frames (S, N, C) with the streams' states; also returns what was compared."""
        compared = self._compared(frames)
        thresholds = [self.control.threshold(self._history(stream).effort) for stream in streams]
        with_conditions = self.keeper is not None
        return compared, compare(
            streams, frames, compared, thresholds, self.prefix_tokens, with_conditions
        )

    def _history(self, stream: Stream) -> MotionHistory:
        """Return what was learned of a stream, or what a new one starts with."""
        if stream.history is None:
            return MotionHistory(self.control.start())
        return motion_history(stream)

    def _carry_out(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        batch: FrameBatch,
        compared: Tensor,
    ) -> tuple[Outputs, list[Plan]]:
        """Encode a frame of each stream as planned; the plans returned tell what came of it."""
        output_layers = batch.output_layers
        chosen = list(zip(streams, plans, strict=True))
        self.place([s for s, plan in chosen if plan.is_kept and s.state is None], output_layers)

        def segment(number: int, plan: Plan) -> Segment:
            return self._begin(streams[number], plan, batch[number], compared[number, None])

        kept = [number for number, plan in enumerate(plans) if plan.is_kept]
        refreshed = {number: self.learner.before(*chosen[number]) for number in kept}
        stale = {
            number: {self.last: motion_state(streams[number]).output[None].clone()}
            for number in kept
            if plans[number].weighed
        }
        self._encode_segments([segment(number, plans[number]) for number in kept])
        plans = self.learner.after(streams, plans, refreshed)
        redone = [number for number, plan in enumerate(plans) if plan.is_redone]
        cached = {
            number: self._cached_outputs(motion_state(streams[number]), output_layers)
            for number in redone
            if plans[number].audit
        }
        self._encode_segments([segment(number, plans[number]) for number in redone])
        before = cached | stale
        now = {
            number: self._cached_outputs(motion_state(streams[number]), frozenset(outputs))
            for number, outputs in before.items()
        }
        plans = self.learner.measure(plans, before, now)
        outputs = [
            self._cached_outputs(motion_state(stream), output_layers)
            if plan.is_kept
            else self.dense_uncached(batch[number])
            for number, (stream, plan) in enumerate(zip(streams, plans, strict=True))
        ]
        if len(outputs) == 1:
            return outputs[0], plans
        return {layer: torch.cat([one[layer] for one in outputs]) for layer in output_layers}, plans

    def _encode_segments(self, segments: Sequence[Segment]) -> None:
        if filled := [segment for segment in segments if segment.rows]:
            self._encoder(filled[0].x.device).encode(filled)

    def rehearse(self, layout: Layout, batch: FrameBatch) -> Timings:
        """Run a frame of each of S made-up streams densely and at each bucket, and take the time.

        Room for so many streams is kept from then on, and what can be recorded is.
        """
        frames = batch.frames
        key, allocate = self._layout_of_state(layout, batch.output_layers)
        self.pool.reserve(len(frames), key, allocate)
        streams = [Stream(f"warm-up {number}", layout) for number in range(len(frames))]
        patches = batch.tokens - self.prefix_tokens

        def run(plan: Plan) -> None:
            compared, _ = self._compare(streams, frames)
            self._carry_out(streams, [plan] * len(streams), batch, compared)

        def seconds(call: Callable[[], object]) -> float:
            return fastest(call, frames.device, self.REHEARSALS)

        try:
            run(Plan("warm-up", patches))
            cached = {}
            for rows in self.planner.bucket_sizes(patches):
                every = torch.arange(
                    rows + self.prefix_tokens, dtype=torch.int32, device=frames.device
                )
                with_tail = self.planner.runs_tail(rows, patches, self.control.start())
                plan = Plan("warm-up", rows, every[None], with_tail=with_tail)
                cached[rows + self.prefix_tokens] = seconds(lambda: run(plan))  # noqa: B023
            return Timings(seconds(lambda: self.dense_uncached(batch)), cached)
        finally:
            for stream in streams:
                stream.drop_state()

    def _restart_without_hidden(self, stream: Stream, output_layers: frozenset[int]) -> None:
        """Start afresh if hidden states are asked for that were not kept so far."""
        if (
            stream.state is None
            or output_layers - {self.last} <= motion_state(stream).hidden.keys()
        ):
            return
        stream.drop_state()
        stream.restart_reason = "hidden states are asked for from here on"

    def place(self, streams: Sequence[Stream], output_layers: frozenset[int]) -> None:
        """Give streams without a state one that also keeps the outputs of some layers."""
        for stream in streams:
            stream.restart_reason = ""
            stream.history = self._history(stream)
        if not streams:
            return
        layout = streams[0].layout
        assert layout is not None
        self.pool.place(streams, *self._layout_of_state(layout, output_layers))

    def _layout_of_state(
        self, layout: Layout, output_layers: frozenset[int]
    ) -> tuple[Hashable, Callable[[int], MotionState]]:
        """Return what tells states apart, and a function that allocates some."""
        hidden, has_tail = output_layers - {self.last}, self.planner.has_tail

        def allocate(slots: int) -> MotionState:
            return MotionState.empty(layout, len(self.blocks), has_tail, hidden, (slots,))

        return (layout, hidden), allocate

    def _begin(self, stream: Stream, plan: Plan, frame: FrameBatch, compared: Tensor) -> Segment:
        """Note one frame's input in the state, and return the rows of it that are encoded."""
        state, slot = motion_state(stream), stream.slot
        assert slot is not None
        state.last_input.copy_(frame.frames[0])
        if plan.indices is None:
            state.staleness.zero_()
        rows = take_rows(frame.frames, plan.indices)
        segment = Segment(slot, state, rows, plan.indices, frame.mask, plan.with_tail)
        if segment.rows:
            segment.put(state.reference, take_rows(compared, plan.indices))
        return segment

    def _encoder(self, device: torch.device) -> SegmentEncoder:
        """Return what encodes on a device, made when it is first needed."""
        if self._encoders.get(device) is None:
            self._encoders[device] = (
                BucketedEncoder(self.blocks, self.planner.head, self.graphs_on(device))
                if self.config.is_bucketed(device.type)
                else RaggedEncoder(self.blocks, self.planner.head)
            )
        return self._encoders[device]

    def _cached_outputs(self, state: MotionState, output_layers: frozenset[int]) -> Outputs:
        """Copy the cached outputs: what the caller keeps must not change later."""
        cached = state.hidden | {self.last: state.output}
        return {layer: cached[layer].clone()[None] for layer in output_layers}

    def _record(self, stream: Stream, plan: Plan, tokens: int) -> FrameRecord:
        """Count a frame and describe it."""
        stream.counters.error += self.learner.settle(stream, plan)
        if plan.indices is None:
            return self.record(
                stream,
                DENSE,
                plan.reason,
                tokens,
                cost=1.0 + plan.spent,
                changed=plan.changed,
                similarity=plan.similarity,
                measured=plan.measured,
                passes=2 if plan.is_redone else 1,
                finite=plan.is_kept,
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
            passes=int(plan.kind == CACHED),
        )

    def _cost(self, plan: Plan, tokens: int) -> float:
        assert plan.indices is not None
        return self.planner.cost(plan.indices.shape[1], tokens, plan.with_tail)
