# SPDX-License-Identifier: Apache-2.0
"""Feedback that sets how much of its frames a stream re-encodes.

Every cached frame re-encodes some tokens that had not changed themselves. What their outputs move
by shows how stale the tokens left out are, because what those miss is the same: the context that
changed around them. No dense frame is needed for it.
"""

from __future__ import annotations

import math

from stc_video.cacher.motion.state import Effort
from stc_video.calibration import Aim

# 1 - threshold at the two ends of the scale of effort.
_LOOSEST, _TIGHTEST = 0.25, 0.04
# From here on the last layers may run for all tokens.
_TAIL_FROM_LEVEL = 0.5
# What a tail leaves of the error: a rough guess, which the calibration absorbs.
_LEFT_BY_TAIL = 0.35
# How fast the effort follows, and how long a frame's error is remembered.
_RATE, _MEMORY = 0.06, 0.5
# What a frame that is not tried leaves of the redo rate.
_FORGIVENESS = 0.9


class EffortControl:
    """Sets each stream's effort so that its error stays near the aim."""

    def __init__(self, aim: Aim, redo_from: float | None, threshold: float | None) -> None:
        self.aim = aim
        self.redo_from = redo_from
        self.fixed_threshold = threshold

    def start(self) -> Effort:
        """Effort of a new stream."""
        return Effort(self.aim.level)

    def threshold(self, effort: Effort) -> float:
        """Cosine at or below which a token counts as changed."""
        if self.fixed_threshold is not None:
            return self.fixed_threshold
        return 1.0 - float(_LOOSEST ** (1.0 - effort.level) * _TIGHTEST**effort.level)

    def allows_tail(self, effort: Effort) -> bool:
        """Whether the last layers may run for all tokens."""
        if self.fixed_threshold is not None:
            return True
        return self.aim.tail and effort.level > _TAIL_FROM_LEVEL

    def is_worth_trying(self, effort: Effort, cost: float) -> bool:
        """Whether a cached frame of this cost is expected to be cheaper than a dense one."""
        return not effort.redo_rate or cost + effort.redo_rate < 1.0

    def error(self, drift: float, left_out: float, with_tail: bool) -> float:
        """Error of a cached frame as far as its refreshed tokens show it.

        Parameters
        ----------
        drift
            Mean 1 - cosine between the refreshed tokens' outputs before and after.
        left_out
            Fraction of the tokens that were not re-encoded.
        with_tail
            Whether the last layers ran for all tokens.
        """
        return drift * left_out * (_LEFT_BY_TAIL if with_tail else 1.0)

    def is_too_far(self, drift: float) -> bool:
        """Whether refreshed tokens moved so far that the frame should be encoded densely."""
        return self.redo_from is not None and drift > self.redo_from

    def skip(self, effort: Effort) -> None:
        """Forgive a little, because a frame was not worth trying; the next one may be."""
        effort.redo_rate *= _FORGIVENESS

    def observe(
        self, effort: Effort, error: float, is_too_far: bool, risk: float | None = None
    ) -> None:
        """Adapt a stream's effort to a cached frame.

        Parameters
        ----------
        effort
            The stream's; changed in place.
        error, is_too_far
            The frame's, as :meth:`error` and :meth:`is_too_far` return them.
        risk
            Error that cached frames have by what was measured, as a fraction of the one that
            they may have. Without it the effort follows what the refreshed tokens show.
        """
        before = error if effort.error is None else effort.error
        effort.error = _MEMORY * before + (1.0 - _MEMORY) * error
        step = math.log(max(effort.error / self.aim.error if risk is None else risk, 1e-9))
        effort.level = min(1.0, max(0.0, effort.level + _RATE * max(-1.0, min(1.0, step))))
        effort.redo_rate = 0.5 * (effort.redo_rate + is_too_far)
