# SPDX-License-Identifier: Apache-2.0
"""What the ``motion`` policy keeps of a stream."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from stc_video.cacher.streams import Buffers, Layout


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
