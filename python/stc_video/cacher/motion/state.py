# SPDX-License-Identifier: Apache-2.0
"""The state of a stream under the ``motion`` policy: its buffers, and what it has learned."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stc_video.cacher.streams import Buffers, Layout, Stream

#: cached frames before the first audit
FIRST_GAP = 2
# How many times what the refreshed tokens show the error is, before the first audit; a logarithm.
_UNSEEN = 1.0


@dataclass
class MotionState(Buffers):
    """State of the ``motion`` policy; N tokens, C channels, L cached layers.

    Attributes
    ----------
    keys, values
        (L, N, C) projections of each token as it was last encoded.
    reference
        (N, C) input of the first attention at which each token was last encoded.
    last_input
        (N, C) input of the first layer in the last frame, to recognise a repeated frame.
    output
        (N, C) output of the last layer.
    staleness
        (N,) float32, drift and age of each token summed up since it was last encoded.
    tail_input
        (N, C) input of the layers that may run for all tokens, or None if there are none.
    hidden
        Outputs of those layers, by number, whose hidden states the caller asks for.
    """

    keys: Tensor
    values: Tensor
    reference: Tensor
    last_input: Tensor
    output: Tensor
    staleness: Tensor
    tail_input: Tensor | None
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        layout: Layout,
        layers: int,
        has_tail: bool,
        hidden: frozenset[int],
        slots: tuple[int, ...] = (),
    ) -> MotionState:
        """Allocate the buffers for a tower of ``layers`` layers, for one stream or for slots."""
        with torch.inference_mode(False):
            shape = (*slots, layout.tokens)
            staleness = torch.zeros(shape, dtype=torch.float32, device=layout.device)
        return cls(
            keys=layout.empty(*slots, layers),
            values=layout.empty(*slots, layers),
            reference=layout.empty(*slots),
            last_input=layout.empty(*slots),
            output=layout.empty(*slots),
            staleness=staleness,
            tail_input=layout.empty(*slots) if has_tail else None,
            hidden={layer: layout.empty(*slots) for layer in sorted(hidden)},
        )


@dataclass
class Effort:
    """The effort spent on a stream: how much of its frames is re-encoded.

    Attributes
    ----------
    level
        From 0, only what changed a lot is re-encoded, to 1.
    error
        Expected 1 - cosine to a dense encode, averaged over the tokens; None before the first
        cached frame.
    redo_rate
        How often cached frames were encoded densely after all lately, from 0 to 1.
    """

    level: float
    error: float | None = None
    redo_rate: float = 0.0


@dataclass
class Ledger:
    """The error that audits have found in a stream, and what is owed of its promise.

    Errors are 1 - cosine to a dense encode, mean over a frame's tokens.

    Attributes
    ----------
    debt
        Error handed out beyond the promised one, summed up over frames; below 0 what is saved.
    log_error, spread, audits
        Mean and variance of the audits' log errors and how many audits they stand for, older
        ones counting less.
    unseen
        Mean log of how many times the error was what the refreshed tokens showed.
    shown
        What the refreshed tokens show of the error in cached frames, on average.
    change, common
        Conditions at the last audit (:class:`Conditions`).
    gap, since
        Cached frames between two audits, and so far since the last one.
    expected, charged
        The error that those frames were taken for, and what they were charged, summed up.
    last
        The error that the frame handed out last is taken for.
    warned
        Whether the caller was told that the promise takes dense frames.
    """

    debt: float = 0.0
    log_error: float = 0.0
    spread: float = 0.0
    audits: float = 0.0
    unseen: float = _UNSEEN
    shown: float = 0.0
    change: float = 0.0
    common: float = 0.0
    gap: int = FIRST_GAP
    since: int = 0
    expected: float = 0.0
    charged: float = 0.0
    last: float = 0.0
    warned: bool = False


@dataclass
class MotionHistory:
    """The part of a stream's state that is learned from its frames."""

    effort: Effort
    ledger: Ledger = field(default_factory=Ledger)


def motion_state(stream: Stream) -> MotionState:
    """Return the buffers of a stream that has some."""
    assert isinstance(stream.state, MotionState)
    return stream.state


def motion_history(stream: Stream) -> MotionHistory:
    """Return what was learned of a stream that has buffers."""
    assert isinstance(stream.history, MotionHistory)
    return stream.history
