# SPDX-License-Identifier: Apache-2.0
"""How much of its frames a stream re-encodes: feedback from what the refreshed tokens show.

Every cached frame re-encodes some tokens that had not changed themselves. What their outputs move
by shows how stale the tokens left out are, because what those miss is the same: the context that
changed around them. No dense frame is needed for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from stc_video.calibration import Aim

# 1 - threshold at the two ends of the scale of effort.
_LOOSEST, _TIGHTEST = 0.25, 0.04
# From here on the last layers may run for all tokens.
_TAIL_FROM_LEVEL = 0.5
# What a tail leaves of the error: a rough guess, which the calibration absorbs.
_LEFT_BY_TAIL = 0.35
# How fast the effort follows, and how long a frame's error is remembered.
_RATE, _MEMORY = 0.06, 0.5
# What a frame without an attempt leaves of the doubt whether the next one is worth it.
_FORGIVENESS = 0.9


@dataclass
class Effort:
    """What is known of one stream.

    Attributes
    ----------
    level
        From 0, only what changed a lot is re-encoded, to 1.
    error
        Expected 1 - cosine to a dense encode, averaged over the tokens; None before the first
        cached frame.
    doubt
        How often cached frames were encoded densely after all lately, from 0 to 1.
    """

    level: float
    error: float | None = None
    doubt: float = 0.0


class EffortControl:
    """Sets each stream's effort so that its error stays near the aim."""

    def __init__(self, aim: Aim, redo_from: float | None, threshold: float | None) -> None:
        self.aim = aim
        self.redo_from = redo_from
        self.fixed_threshold = threshold

    def start(self) -> Effort:
        """Effort of a new stream."""
        return Effort(self.aim.level)

    def threshold(self, effort: Effort | None) -> float:
        """Cosine at or below which a token counts as changed; None for a new stream."""
        if self.fixed_threshold is not None:
            return self.fixed_threshold
        effort = effort or self.start()
        return 1.0 - float(_LOOSEST ** (1.0 - effort.level) * _TIGHTEST**effort.level)

    def allows_tail(self, effort: Effort) -> bool:
        """Whether the last layers may run for all tokens."""
        if self.fixed_threshold is not None:
            return True
        return self.aim.tail and effort.level > _TAIL_FROM_LEVEL

    def is_worth_trying(self, effort: Effort, cost: float) -> bool:
        """Whether a cached frame of this cost is expected to be cheaper than a dense one."""
        is_worth = not effort.doubt or cost + effort.doubt < 1.0
        if not is_worth:
            effort.doubt *= _FORGIVENESS
        return is_worth

    def observe(
        self,
        effort: Effort,
        drift: float,
        left_out: float,
        with_tail: bool,
        risk: float | None = None,
    ) -> tuple[float, bool]:
        """Take in what a cached frame showed, and say whether it must be encoded densely.

        Parameters
        ----------
        effort
            The stream's; changed in place.
        drift
            Mean 1 - cosine between the refreshed tokens' outputs before and after.
        left_out
            Fraction of the tokens that were not re-encoded.
        with_tail
            Whether the last layers ran for all tokens.
        risk
            Error that cached frames have by what was measured, as a fraction of the one that
            they may have. Without it the effort follows what the refreshed tokens show.

        Returns
        -------
        tuple
            The frame's error as far as the refreshed tokens show it, and whether to encode it
            densely.
        """
        error = drift * left_out * (_LEFT_BY_TAIL if with_tail else 1.0)
        before = error if effort.error is None else effort.error
        effort.error = _MEMORY * before + (1.0 - _MEMORY) * error
        step = math.log(max(effort.error / self.aim.error if risk is None else risk, 1e-9))
        effort.level = min(1.0, max(0.0, effort.level + _RATE * max(-1.0, min(1.0, step))))
        is_redone = self.redo_from is not None and drift > self.redo_from
        effort.doubt = 0.5 * (effort.doubt + is_redone)
        return error, is_redone
