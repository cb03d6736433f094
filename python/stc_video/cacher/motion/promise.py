# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping that holds a promised similarity by what audits measure.

An audit encodes a frame both ways, cached and densely, hands out the dense features, and tells
what the cached ones would have been off by. Each stream has a ledger: every frame handed out may
be off by the promised error. A dense frame saves that for later ones; a cached frame is charged
what frames like it are expected to be off by, with a margin for how little is known and how much
the audits disagree. A frame that the ledger cannot pay for is encoded densely.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from stc_video.cacher.motion.changes import Conditions
from stc_video.cacher.motion.state import FIRST_GAP, Ledger
from stc_video.towers.block import Tower

# The part of the promised error that is spent: the rest is for what no audit saw.
_SPENT = 0.95
# How many frames' allowance may be saved, so that good minutes do not pay for a bad one.
_SAVED = 4.0
# What is believed of the spread of log errors beforehand, and for how many audits this counts.
_SPREAD, _BELIEF = 0.65, 5.0
# The margin in standard errors of the mean log error.
_MARGIN = 0.5
# How fast older audits are forgotten, as those of another scene.
_MEMORY = 0.9
# Refreshed tokens that show less than this part of the error are taken not to see it. What is
# between the audits is then unknown, and the spread larger.
_SEEN, _BLINDNESS = 1 / 4, 0.5
# The longest gap between two audits, and by what factor gaps grow: the larger one where a cached
# frame is charged, with its margin, no more than this part of the allowance.
_LONGEST = 16
_GROWTH, _FASTER, _CLEARLY = 2, 4, 0.7
# By what factor conditions must differ from those of the last audit to call for another one.
_OTHER, _MORE_CHANGE, _MORE_DRIFT = 2.0, 3.0, 3.0
# How slowly the conditions of earlier audits are forgotten.
_CONDITIONS = 0.7
_LEAST_CHANGE, _LEAST_COMMON = 0.001, 0.03
# A frame charged more than this many times the allowance is not handed out, whatever is saved.
_HOPELESS = 2.0
# The error of tokens that are encoded among stale ones, as a part of that of the stale ones.
_ENCODED = 0.7
_LEAST_ERROR = 1e-6
# Where between the last audit and this one the frames in between are taken to lie.
_BETWEEN = 0.5


class PromiseWarning(RuntimeWarning):
    """Caching does not keep the promised similarity in a stream; its frames are dense instead."""


class Way(Enum):
    """The ways to encode a frame that could be cached."""

    CACHED = "cached"
    AUDIT = "audit"
    DENSE = "dense"


class PromiseKeeper:
    """Decides which frames are audited and which cannot be cached.

    Parameters
    ----------
    promised
        Mean cosine to a dense encode that is promised.
    """

    def __init__(self, promised: float) -> None:
        self.promised = promised
        self.allowed = _SPENT * (1.0 - promised)

    def decide(self, ledger: Ledger, seen: Conditions) -> tuple[Way, str]:
        """Decide how the next frame is to be encoded, and say why."""
        is_due = ledger.since >= ledger.gap
        if self._is_hopeless(ledger):
            return Way.DENSE, "caching does not keep the promise here"
        differs = self._differs(ledger, seen)
        if is_due or differs:
            return Way.AUDIT, differs or "audit"
        if ledger.debt + self.risk(ledger) > self.allowed:
            return Way.DENSE, "the promise would not be kept"
        return Way.CACHED, ""

    def may_repeat(self, ledger: Ledger) -> bool:
        """Whether the last frame's features may be handed out once more."""
        return ledger.debt + ledger.last <= self.allowed or ledger.last == 0.0

    def audit_reason(self, ledger: Ledger, shown: float) -> str:
        """Say why a frame that was encoded the cached way is to be audited; empty if it is not.

        ``shown`` is its error as far as the refreshed tokens show it.
        """
        is_unusual = shown >= _MORE_DRIFT * (ledger.shown or shown)
        if is_unusual and self.is_too_much(ledger, shown):
            return "refreshed tokens had changed more than before"
        return ""

    def note_shown(self, ledger: Ledger, shown: float) -> None:
        """Take in what the refreshed tokens of a cached frame show of its error."""
        ledger.shown = 0.7 * (ledger.shown or shown) + 0.3 * shown

    def is_too_much(self, ledger: Ledger, shown: float) -> bool:
        """Whether what refreshed tokens show means an error of more than the allowance."""
        return shown * math.exp(ledger.unseen) > self.allowed

    def hand_out_cached(self, ledger: Ledger) -> float:
        """Charge a cached frame that is handed out; the error that it is taken for."""
        expected = self.expected(ledger)
        charged = self.risk(ledger)
        ledger.since += 1
        ledger.expected += expected
        ledger.charged += charged
        ledger.last = expected
        self._book(ledger, charged)
        return expected

    def hand_out_again(self, ledger: Ledger) -> float:
        """Charge a repeated frame; the error that it is taken for."""
        self._book(ledger, ledger.last)
        return ledger.last

    def give_notice(self, ledger: Ledger, stream: str) -> None:
        """Warn once where the promise takes dense frames instead of cached ones."""
        if ledger.warned or not self._is_hopeless(ledger):
            return
        ledger.warned = True
        warnings.warn(
            f"stream {stream!r}: cached frames have a cosine of about "
            f"{1.0 - self.expected(ledger):.3f} to a dense encode, and {self.promised:g} is "
            "promised (CacheConfig.quality), so that frames are encoded densely for now; a lower "
            "quality would save work here",
            PromiseWarning,
            stacklevel=2,
        )

    def hand_out_dense(self, ledger: Ledger) -> None:
        """Save the allowance of a frame without an error."""
        ledger.last = 0.0
        self._book(ledger, 0.0)

    def learn(self, ledger: Ledger, error: float, shown: float | None, seen: Conditions) -> float:
        """Take in an audit.

        Parameters
        ----------
        ledger
            The stream's; changed in place.
        error
            What the cached features were off by.
        shown
            What the refreshed tokens made of it; None if there were none.
        seen
            The conditions.

        Returns
        -------
        float
            By how much more the cached frames since the last audit are now taken to have been off.
        """
        known = ledger.since
        risk = ledger.charged / known if known else self.risk(ledger)
        expected = ledger.expected / known if known else 0.0
        # Before the first audit nothing was known of them.
        correction = known * (error - expected) * (_BETWEEN if ledger.audits else 1.0)
        ledger.debt += known * max(0.0, _BETWEEN * (error - risk))
        self._note(ledger, max(error, _LEAST_ERROR), shown)
        ledger.change = max(seen.change, _CONDITIONS * ledger.change)
        ledger.common = max(seen.common, _CONDITIONS * ledger.common)
        ledger.since, ledger.expected, ledger.charged = 0, 0.0, 0.0
        self._schedule(ledger, error)
        return correction

    def known_risk(self, ledger: Ledger) -> float | None:
        """Return the risk as a fraction of the allowance; None before the first audit."""
        return self.risk(ledger) / self.allowed if ledger.audits else None

    def weigh(self, ledger: Ledger, stale: float, encoded: float) -> None:
        """Take in a dense frame that could have been cached.

        Parameters
        ----------
        ledger
            The stream's; changed in place.
        stale
            What the tokens that would have been left out were off by.
        encoded
            The part of the tokens that would have been encoded.
        """
        error = stale * (1.0 - (1.0 - _ENCODED) * encoded)
        self._note(ledger, max(error, _LEAST_ERROR), None)

    def expected(self, ledger: Ledger) -> float:
        """Return the error that a cached frame is likely to have."""
        if not ledger.audits:
            return self.allowed
        return math.exp(min(0.0, ledger.log_error + self._variance(ledger) / 2.0))

    def risk(self, ledger: Ledger) -> float:
        """Return the error that a cached frame is charged: the likely one with a margin."""
        if not ledger.audits:
            return self.allowed
        variance = self._variance(ledger)
        blindness = max(0.0, ledger.unseen + math.log(_SEEN))
        variance += _BLINDNESS * blindness
        margin = _MARGIN * math.sqrt(variance / ledger.audits)
        return math.exp(min(0.0, ledger.log_error + variance / 2.0 + margin))

    def _is_hopeless(self, ledger: Ledger) -> bool:
        """Whether half of the cached frames would be off by much more than is allowed."""
        limit = _HOPELESS * self.allowed
        return ledger.audits > 0.0 and math.exp(ledger.log_error) > limit

    def _variance(self, ledger: Ledger) -> float:
        known = ledger.audits * ledger.spread + _BELIEF * _SPREAD**2
        return known / (ledger.audits + _BELIEF)

    def _note(self, ledger: Ledger, error: float, shown: float | None) -> None:
        """Add an audit to what is known of the stream's errors."""
        weight = _MEMORY * ledger.audits
        total = weight + 1.0
        step = math.log(error) - ledger.log_error
        ledger.log_error += step / total
        ledger.spread = weight / total * (ledger.spread + step * step / total)
        ledger.audits = total
        if shown is not None:
            unseen = math.log(error / max(shown, _LEAST_ERROR))
            ledger.unseen += (unseen - ledger.unseen) / total

    def _schedule(self, ledger: Ledger, error: float) -> None:
        """Choose when the next audit is due."""
        if error > self.allowed:
            ledger.gap = max(FIRST_GAP, ledger.gap // 2)
            return
        is_clear = self.risk(ledger) <= _CLEARLY * self.allowed
        growth = _FASTER if is_clear else _GROWTH
        ledger.gap = min(_LONGEST, growth * ledger.gap)

    def _differs(self, ledger: Ledger, seen: Conditions) -> str:
        """Say in what a frame differs from the last audited one; empty if in nothing."""
        if not ledger.audits:
            return ""
        if seen.common > max(_LEAST_COMMON, _OTHER * ledger.common):
            return "every token changed in the same way"
        if seen.change > _LEAST_CHANGE + _MORE_CHANGE * ledger.change:
            return "every token changed more than before"
        return ""

    def _book(self, ledger: Ledger, error: float) -> None:
        ledger.debt = max(-_SAVED * self.allowed, ledger.debt + error - self.allowed)


def measure_cosines(
    cached: Sequence[Mapping[int, Tensor]],
    dense: Sequence[Mapping[int, Tensor]],
    norms: Sequence[nn.Module],
    tokens: Sequence[Tensor | None],
) -> list[float]:
    """Compare cached features with dense ones, with one transfer for all streams.

    Parameters
    ----------
    cached, dense
        For each stream the outputs (1, N, C) of the layers that are handed out.
    norms
        What normalises the output of the last layer.
    tokens
        For each stream (N,) bool, which tokens are compared; None for all of them.

    Returns
    -------
    list of float
        For each stream the mean cosine over the tokens: of the layers, and of the last one also
        behind each norm, where it is lowest.
    """
    # The modules' forwards: hooks on a norm are for features that are handed out.
    lowest = []
    for mine, its, which in zip(cached, dense, tokens, strict=True):
        last = max(its)
        pairs = [(mine[layer], its[layer]) for layer in its]
        pairs += [(norm.forward(mine[last]), norm.forward(its[last])) for norm in norms]
        each = torch.cat([cosine_similarity(a.float(), b.float(), dim=-1) for a, b in pairs])
        if which is not None:
            each = each * which * (which.numel() / which.sum())
        lowest.append(each.mean(dim=1).min())
    cosines: list[float] = torch.stack(lowest).tolist()
    return cosines


def final_norms(tower: Tower) -> list[nn.Module]:
    """Find what may normalise the output of a tower's last block, outside of the blocks."""
    inside = {id(part) for block in tower.blocks for part in block.layer.modules()}
    width = (tower.blocks[-1].channels,)
    return [
        module
        for name, module in tower.root.named_modules()
        if id(module) not in inside
        and ("norm" in (leaf := name.rsplit(".", 1)[-1]) or leaf.startswith("ln"))
        and not leaf.startswith("pre")
        and tuple(getattr(getattr(module, "weight", None), "shape", ())) == width
    ]
