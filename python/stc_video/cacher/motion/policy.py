# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: spend where the content changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.motion.ahead import Ahead, go_ahead
from stc_video.cacher.motion.bucketed import BucketedEncoder
from stc_video.cacher.motion.changes import Comparison, FrameChange, compare
from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.learning import Learner
from stc_video.cacher.motion.plan import Plan, Planner
from stc_video.cacher.motion.promise import PromiseKeeper, final_norms
from stc_video.cacher.motion.ragged import RaggedEncoder
from stc_video.cacher.motion.segments import Segment, SegmentEncoder
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

    #: types of devices on which it costs time to wait for them
    AHEAD_ON = frozenset({"cuda"})

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
        compared, changes = self._compare(streams, batch)
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
        self, streams: Sequence[Stream], batch: FrameBatch
    ) -> tuple[Tensor, list[FrameChange]]:
        """Compare a frame of each stream with its state; also returns what was compared.

        While the device works, what is likely to be encoded is encoded ahead, on a GPU.
        """
        frames = batch.frames
        compared = self._compared(frames)
        thresholds = [self.control.threshold(self._history(stream).effort) for stream in streams]
        with_conditions = self.keeper is not None
        seen = compare(streams, frames, compared, thresholds, self.prefix_tokens, with_conditions)
        ahead = self._go_ahead(streams, seen, batch, compared)
        changes, moves = seen.fetch(*(one.moves for one in ahead.values()))
        for (number, one), moved in zip(ahead.items(), moves, strict=True):
            changes[number] = replace(changes[number], ahead=replace(one, moves=moved))
        return compared, changes

    def _go_ahead(
        self,
        streams: Sequence[Stream],
        seen: Comparison,
        batch: FrameBatch,
        compared: Tensor,
    ) -> dict[int, Ahead]:
        """Encode those frames ahead of which it is likely how many rows they need."""
        device, tokens = batch.frames.device, batch.tokens
        if device.type not in self.AHEAD_ON or not self.config.is_bucketed(device.type):
            return {}
        likely = {number: self.planner.expected(streams[number], tokens) for number in seen.known}
        expected = {number: rows for number, rows in likely.items() if rows is not None}
        patches = tokens - self.prefix_tokens

        def encode(indices: Mapping[int, Tensor]) -> None:
            self._encode_segments(
                [
                    self._segment(
                        streams[number],
                        rows,
                        batch[number],
                        compared[number, None],
                        self.planner.runs_tail(
                            expected[number], patches, self._history(streams[number]).effort
                        ),
                    )
                    for number, rows in indices.items()
                ]
            )

        rows_for = self.planner.rows_for(patches, device)
        age = self.config.age_rate
        return go_ahead(streams, seen, expected, rows_for, self.prefix_tokens, age, encode)

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
            tail = plan.with_tail
            return self._segment(
                streams[number], plan.indices, batch[number], compared[number, None], tail
            )

        kept = [number for number, plan in enumerate(plans) if plan.is_kept]
        refreshed = {number: self.learner.before(*chosen[number]) for number in kept}
        stale = {
            number: {self.last: motion_state(streams[number]).output[None].clone()}
            for number in kept
            if plans[number].weighed
        }
        self._note_inputs(streams, plans, batch.frames)
        self._encode_segments(
            [segment(number, plans[number]) for number in kept if plans[number].ahead is None]
        )
        plans = self.learner.after(streams, plans, refreshed)
        redone = [number for number, plan in enumerate(plans) if plan.is_redone]
        cached = {
            number: self._cached_outputs(motion_state(streams[number]), output_layers)
            for number in redone
            if plans[number].audit
        }
        for number in redone:
            motion_state(streams[number]).staleness.zero_()
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
            self._encoder(filled[0].frame.device).encode(filled)

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
            compared, _ = self._compare(streams, batch)
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

    def _note_inputs(
        self, streams: Sequence[Stream], plans: Sequence[Plan], frames: Tensor
    ) -> None:
        """Enter frames (S, N, C) into the states that they belong to."""
        kept = [number for number, plan in enumerate(plans) if plan.is_kept]
        if kept:
            inputs = [motion_state(streams[number]).last_input for number in kept]
            torch._foreach_copy_(inputs, [frames[number] for number in kept])
        for number in kept:
            if plans[number].indices is None:
                motion_state(streams[number]).staleness.zero_()

    def _segment(
        self,
        stream: Stream,
        indices: Tensor | None,
        frame: FrameBatch,
        compared: Tensor,
        with_tail: bool,
    ) -> Segment:
        """Rows of one frame, of which what was compared is given, (1, N, C)."""
        assert stream.slot is not None
        inputs = frame.frames, compared
        return Segment(stream.slot, motion_state(stream), *inputs, indices, frame.mask, with_tail)

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
