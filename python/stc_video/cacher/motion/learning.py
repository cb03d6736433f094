# SPDX-License-Identifier: Apache-2.0
"""Learning from encoded frames: what is passed on, encoded again, measured and owed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stc_video.cacher.motion.control import EffortControl
from stc_video.cacher.motion.plan import Plan
from stc_video.cacher.motion.promise import PromiseKeeper, measure_cosines
from stc_video.cacher.motion.propagation import Refreshed
from stc_video.cacher.motion.state import motion_history, motion_state
from stc_video.cacher.policy import Outputs
from stc_video.cacher.stats import CACHED, UNCHANGED
from stc_video.cacher.streams import Stream


@dataclass(frozen=True)
class Learner:
    """Takes in what encoded frames show, stream by stream.

    Attributes
    ----------
    control
        Sets the streams' efforts.
    keeper
        Keeps what is promised; None if nothing is.
    norms
        What normalises the output of the last layer.
    weight
        How much of what the refreshed tokens moved by is passed on to the others.
    cost
        Cost of the cached frame of a plan, for a number of tokens.
    """

    control: EffortControl
    keeper: PromiseKeeper | None
    norms: Sequence[nn.Module]
    weight: float
    cost: Callable[[Plan, int], float]

    def before(self, stream: Stream, plan: Plan) -> Refreshed | None:
        """Keep the outputs of the tokens that are about to be refreshed, if there are any."""
        if plan.refreshed is None or plan.left_out is None or not len(plan.refreshed):
            return None
        if plan.ahead is not None:
            return plan.ahead.refreshed(plan.ahead.rows - len(plan.refreshed))
        return Refreshed.before(motion_state(stream).output, plan.refreshed, plan.left_out)

    def after(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        refreshed: dict[int, Refreshed | None],
    ) -> list[Plan]:
        """Learn from the refreshed tokens; frames that must be encoded densely get a new plan."""
        drifts = self._drifts(streams, plans, refreshed)
        return [
            self._learn_from(streams[number], plan, refreshed[number], drifts.get(number))
            if plan.kind == CACHED
            else plan
            for number, plan in enumerate(plans)
        ]

    def measure(
        self, plans: Sequence[Plan], before: Mapping[int, Outputs], now: Mapping[int, Outputs]
    ) -> list[Plan]:
        """Compare outputs before some frames were encoded densely with those of now."""
        measured = list(plans)
        if not before:
            return measured
        weighed = [plans[number].weighed for number in before]
        tokens = [None if one is None else one.left_out for one in weighed]
        cosines = measure_cosines(list(before.values()), list(now.values()), self.norms, tokens)
        for number, cosine in zip(before, cosines, strict=True):
            plan = plans[number]
            measured[number] = (
                replace(plan, measured=cosine) if plan.audit else replace(plan, stale=1.0 - cosine)
            )
        return measured

    def settle(self, stream: Stream, plan: Plan) -> float:
        """Enter a frame into the ledger; returns the error now known to have been handed out."""
        if self.keeper is None or not plan.is_kept:
            return 0.0
        keeper, ledger = self.keeper, motion_history(stream).ledger
        if plan.kind == CACHED:
            return keeper.hand_out_cached(ledger)
        if plan.kind == UNCHANGED:
            return keeper.hand_out_again(ledger)
        error = 0.0
        if plan.weighed is not None:
            keeper.weigh(ledger, plan.stale, plan.weighed.share)
        if plan.measured is not None:
            error = keeper.learn(ledger, 1.0 - plan.measured, plan.shown, plan.conditions)
            keeper.give_notice(ledger, stream.name)
        keeper.hand_out_dense(ledger)
        return error

    def _learn_from(
        self, stream: Stream, plan: Plan, refreshed: Refreshed | None, drift: float | None
    ) -> Plan:
        """Learn from one stream's cached frame."""
        output, reason, error = motion_state(stream).output, plan.audit, None
        if drift is not None and refreshed is not None:
            effort, ledger = motion_history(stream).effort, motion_history(stream).ledger
            left_out = len(refreshed.left_out) / output.shape[0]
            error = self.control.error(drift, left_out, plan.with_tail)
            is_redone = self.control.is_too_far(drift)
            risk = None if self.keeper is None else self.keeper.known_risk(ledger)
            self.control.observe(effort, error, is_redone, risk)
            if self.weight and not plan.with_tail:
                refreshed.propagate(output, self.weight)
            if self.keeper is not None:
                is_redone = is_redone and self.keeper.is_too_much(ledger, error)
                reason = reason or self.keeper.audit_reason(ledger, error)
                self.keeper.note_shown(ledger, error)
            if is_redone:
                reason = f"refreshed tokens had changed by {drift:.2f}: encoded densely after all"
        if not reason:
            return plan
        spent = self.cost(plan, output.shape[0])
        return plan.redone(reason, spent, error, is_audit=self.keeper is not None)

    def _drifts(
        self,
        streams: Sequence[Stream],
        plans: Sequence[Plan],
        refreshed: dict[int, Refreshed | None],
    ) -> dict[int, float]:
        """Measure how far refreshed tokens moved, with one transfer for all streams, if any."""
        drifts: dict[int, float] = {}
        moved: dict[int, Tensor] = {}
        for number, tokens in refreshed.items():
            ahead = plans[number].ahead
            if tokens is None:
                continue
            if ahead is None:
                moved[number] = tokens.drift(motion_state(streams[number]).output)
            else:
                drifts[number] = ahead.drift(ahead.rows - len(tokens.indices))
        if moved:
            found = torch.stack(list(moved.values())).tolist()
            drifts |= dict(zip(moved, found, strict=True))
        return drifts
