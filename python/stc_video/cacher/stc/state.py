# SPDX-License-Identifier: Apache-2.0
"""The state of a stream under the ``stc`` policy."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

from stc_video.cacher.streams import Buffers, Layout


@dataclass
class StcState(Buffers):
    """State of the ``stc`` policy: what the last dense frame left in each of L layers.

    Attributes
    ----------
    compared
        (L, N, C) keys (or values) that new ones are compared with.
    reused
        (L, N, C) values (or keys) that unselected tokens keep.
    update
        (L, N, C) what the layer added to the residual stream, attention and MLP together.
    """

    compared: Tensor
    reused: Tensor
    update: Tensor

    @classmethod
    def empty(cls, layout: Layout, layers: int, slots: tuple[int, ...] = ()) -> StcState:
        """Allocate the buffers for a tower of ``layers`` layers, for one stream or for slots."""
        return cls(*(layout.empty(*slots, layers) for _ in fields(cls)))
