# SPDX-License-Identifier: Apache-2.0
"""The ``motion`` policy: spend where the content changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stc_video.cacher.guard import Timings, fastest
from stc_video.cacher.motion.bucketed import BucketedEncoder
from stc_video.cacher.motion.changes import Look, look, motion_state
from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.plan import Plan, Planner, effort_of, ledger_of
from stc_video.cacher.motion.promise import PromiseKeeper, final_norms, measure_cosines
from stc_video.cacher.motion.propagation import Refreshed
from stc_video.cacher.motion.ragged import RaggedEncoder
from stc_video.cacher.motion.segments import Segment, SegmentEncoder, take_rows
from stc_video.cacher.motion.state import MotionState
from stc_video.cacher.policy import Outputs, PolicyBase
from stc_video.cacher.stats import CACHED, DENSE, UNCHANGED, FrameRecord
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
    tokens (``effort.py``), and where it is large, the frame is encoded densely after all.
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
            self.pinned,
            self.operations,
            self.pays,
            self.describe_guard,
        )
        self.norms = final_norms(tower)
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
        compared, looks = self._look(streams, frames)
        tokens = frames.shape[1]
        plans = [self.planner.plan(*pair, tokens) for pair in zip(streams, looks, strict=True)]
        outputs, plans = self._carry_out(streams, plans, frames, compared, mask, wanted)
        chosen = zip(streams, plans, strict=True)
        return outputs, [self._record(stream, plan, tokens) for stream, plan in chosen]

    def _compared(self, frames: Tensor) -> Tensor:
        """By what changes are told, (S, N, C) like the frames: the input of the first attention."""
        normed: Tensor = self.blocks[0].norm1(frames)
        return normed

    def _look(self, streams: Sequence[Stream], frames: Tensor) -> tuple[Tensor, list[Look]]:
        """What is compared with the streams' states, and what is seen of their frames."""
        compared = self._compared(frames)
        thresholds = [self.control.threshold(stream.effort) for stream in streams]
        is_promised = self.keeper is not None
        return compared, look(streams, frames, compared, thresholds, self.pinned, is_promised)

    def _carry_out(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        frames: Tensor,
        compared: Tensor,
        mask: Tensor | None,
        wanted: frozenset[int],
    ) -> tuple[Outputs, list[Plan]]:
        """Encode frames (S, N, C) as planned, and say what was done with them in the end."""
        chosen = list(zip(streams, plans, strict=True))
        self.place([s for s, plan in chosen if plan.is_kept and s.state is None], wanted)

        def masks(number: int) -> Tensor | None:
            return None if mask is None else mask[number, None]

        def segment(number: int, plan: Plan) -> Segment:
            one = slice(number, number + 1)
            return self._begin(streams[number], plan, frames[one], compared[one], masks(number))

        kept = [number for number, plan in enumerate(plans) if plan.is_kept]
        refreshed = {number: self._refreshed(*chosen[number]) for number in kept}
        stale = {
            number: {self.last: motion_state(streams[number]).output[None].clone()}
            for number in kept
            if plans[number].weighed
        }
        self._encode_segments([segment(number, plans[number]) for number in kept])
        plans = self._learn(streams, plans, refreshed)
        redone = [number for number, plan in enumerate(plans) if plan.spent]
        cached = {
            number: self._cached_outputs(motion_state(streams[number]), wanted)
            for number in redone
            if plans[number].audit
        }
        self._encode_segments([segment(number, plans[number]) for number in redone])
        self._measure(streams, plans, cached | stale)
        outputs = [
            self._cached_outputs(motion_state(stream), wanted)
            if plan.is_kept
            else self.dense_uncached(frames[number, None], masks(number), wanted)
            for number, (stream, plan) in enumerate(zip(streams, plans, strict=True))
        ]
        if len(outputs) == 1:
            return outputs[0], plans
        return {layer: torch.cat([one[layer] for one in outputs]) for layer in wanted}, plans

    def _encode_segments(self, segments: Sequence[Segment]) -> None:
        if filled := [segment for segment in segments if segment.rows]:
            self._encoder(filled[0].x.device).encode(filled)

    def _refreshed(self, stream: Stream, plan: Plan) -> Refreshed | None:
        """Keep the outputs of the tokens that are about to be refreshed, if there are any."""
        if plan.refreshed is None or plan.left_out is None or not len(plan.refreshed):
            return None
        return Refreshed.before(motion_state(stream).output, plan.refreshed, plan.left_out)

    def _learn(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        refreshed: dict[int, Refreshed | None],
    ) -> list[Plan]:
        """Learn from the refreshed tokens; frames that must be encoded densely get a new plan."""
        plans = list(plans)
        drifts = self._drifts(streams, refreshed)
        for number, plan in enumerate(plans):
            if plan.kind != CACHED:
                continue
            stream, drift = streams[number], drifts.get(number)
            output = motion_state(stream).output
            tokens, audit, shown = refreshed[number], plan.audit, None
            is_redone = False
            if drift is not None and tokens is not None:
                left_out = len(tokens.left_out) / output.shape[0]
                risk = None if self.keeper is None else self.keeper.known_risk(ledger_of(stream))
                shown, is_redone = self.control.observe(
                    effort_of(stream), drift, left_out, plan.with_tail, risk
                )
                if self.config.propagate and not plan.with_tail:
                    tokens.propagate(output, self.config.propagate)
            if is_redone and self.keeper is not None and shown is not None:
                is_redone = self.keeper.is_much(ledger_of(stream), shown)
            if is_redone:
                audit = f"refreshed tokens had changed by {drift:.2f}: encoded densely after all"
            if self.keeper is not None:
                unusual = self.keeper.after(ledger_of(stream), shown)
                audit = audit or unusual
            if audit:
                plans[number] = Plan(
                    audit,
                    plan.changed,
                    similarity=plan.similarity,
                    spent=self._cost(plan, output.shape[0]),
                    audit=audit if self.keeper is not None else "",
                    shown=shown,
                    conditions=plan.conditions,
                )
        return plans

    def _measure(
        self, streams: Sequence[Stream], plans: list[Plan], before: Mapping[int, Outputs]
    ) -> None:
        """Compare what was cached before some frames were encoded densely with what is now."""
        if not before:
            return
        layers = {number: frozenset(outputs) for number, outputs in before.items()}
        now = [self._cached_outputs(motion_state(streams[n]), layers[n]) for n in before]
        weighed = [plans[number].weighed for number in before]
        left = [None if w is None or w[0].is_changed is None else ~w[0].is_changed for w in weighed]
        cosines = measure_cosines(list(before.values()), now, self.norms, left)
        for number, cosine in zip(before, cosines, strict=True):
            if plans[number].audit:
                plans[number] = replace(plans[number], measured=cosine)
            else:
                plans[number] = replace(plans[number], stale=1.0 - cosine)

    def _drifts(
        self, streams: Sequence[Stream], refreshed: dict[int, Refreshed | None]
    ) -> dict[int, float]:
        """How far refreshed tokens moved, with one transfer for all streams."""
        seen = {number: tokens for number, tokens in refreshed.items() if tokens is not None}
        if not seen:
            return {}
        moved = [t.drift(motion_state(streams[n]).output) for n, t in seen.items()]
        return dict(zip(seen, torch.stack(moved).tolist(), strict=True))

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
            compared, _ = self._look(streams, frames)
            self._carry_out(streams, [plan] * len(streams), frames, compared, mask, wanted)

        def seconds(call: Callable[[], object]) -> float:
            return fastest(call, frames.device, self.REHEARSALS)

        try:
            run(Plan("warm-up", patches))
            cached = {}
            for rows in self.planner.bucket_sizes(patches):
                every = torch.arange(rows + self.pinned, dtype=torch.int32, device=frames.device)
                with_tail = self.planner.runs_tail(rows, patches, self.control.start())
                plan = Plan("warm-up", rows, every[None], with_tail=with_tail)
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

    def place(self, streams: Sequence[Stream], wanted: frozenset[int]) -> None:
        """Give streams without a state one, which also keeps the hidden states wanted."""
        for stream in streams:
            stream.restart_reason = ""
            stream.effort = stream.effort or self.control.start()
        if not streams:
            return
        layout = streams[0].layout
        assert layout is not None
        self.pool.place(streams, *self._layout_of_state(layout, wanted))

    def _layout_of_state(
        self, layout: Layout, wanted: frozenset[int]
    ) -> tuple[Hashable, Callable[[int], MotionState]]:
        """What tells states apart, and what allocates some."""
        hidden, has_tail = wanted - {self.last}, self.planner.has_tail

        def allocate(slots: int) -> MotionState:
            return MotionState.empty(layout, len(self.blocks), has_tail, hidden, (slots,))

        return (layout, hidden), allocate

    def _begin(
        self, stream: Stream, plan: Plan, frame: Tensor, compared: Tensor, mask: Tensor | None
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

    def _cached_outputs(self, state: MotionState, wanted: frozenset[int]) -> Outputs:
        """Copy the cached outputs: what the caller keeps must not change later."""
        cached = state.hidden | {self.last: state.output}
        return {layer: cached[layer].clone()[None] for layer in wanted}

    def _record(self, stream: Stream, plan: Plan, tokens: int) -> FrameRecord:
        """Count a frame and describe it."""
        stream.counters.nonfinite += not plan.is_kept
        if self.keeper is not None and plan.is_kept:
            stream.counters.error += self._settle(self.keeper, stream, plan)
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

    def _settle(self, keeper: PromiseKeeper, stream: Stream, plan: Plan) -> float:
        """Enter a frame into the ledger; what is now known to have been handed out in error."""
        ledger = ledger_of(stream)
        if plan.kind == CACHED:
            return keeper.hand_out_cached(ledger)
        if plan.kind == UNCHANGED:
            return keeper.hand_out_again(ledger)
        error = 0.0
        if plan.weighed is not None:
            keeper.weigh(ledger, plan.stale, plan.weighed[1])
        if plan.measured is not None:
            error = keeper.learn(ledger, 1.0 - plan.measured, plan.shown, plan.conditions)
            keeper.give_notice(ledger, stream.name)
        keeper.hand_out_dense(ledger)
        return error

    def _cost(self, plan: Plan, tokens: int) -> float:
        assert plan.indices is not None
        return self.planner.cost(plan.indices.shape[1], tokens, plan.with_tail)
