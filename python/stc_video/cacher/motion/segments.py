# SPDX-License-Identifier: Apache-2.0
"""Segments, which the ``motion`` policy hands to an encoder: rows of one stream's frame."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from stc_kernels import gather_rows, scatter_rows_
from stc_video.cacher.motion.state import MotionState
from stc_video.cacher.streams import Slot


@dataclass(frozen=True)
class Segment:
    """The rows of one stream's frame that are encoded.

    Attributes
    ----------
    slot
        The place of the stream's state in the pool.
    state
        The stream's state, which is written to.
    frame
        (1, N, C) input of the first layer.
    compared
        (1, N, C) input of its attention.
    indices
        (1, K) int32, the indices of the rows in the frame, -1 for a row that is written nowhere;
        None for all tokens.
    mask
        Key mask, (1, 1, 1, N), or None.
    with_tail
        Whether the last layers run for all tokens, on what the layers before left for the others.
    """

    slot: Slot
    state: MotionState
    frame: Tensor
    compared: Tensor
    indices: Tensor | None
    mask: Tensor | None = None
    with_tail: bool = False

    @property
    def rows(self) -> int:
        """Number of rows, K."""
        return self.state.output.shape[0] if self.indices is None else self.indices.shape[1]

    @functools.cached_property
    def x(self) -> Tensor:
        """(1, K, C) the rows of the input of the first layer."""
        return take_rows(self.frame, self.indices)

    def put_reference(self) -> None:
        """Note at which input the rows are encoded."""
        self.put(self.state.reference, take_rows(self.compared, self.indices))

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """Write this segment's rows (1, K, C) into a plane (N, C) of the state."""
        if self.indices is None:
            whole.copy_(rows[0])
        else:
            scatter_rows_(whole[None], self.indices, rows)


class SegmentEncoder(Protocol):
    """Runs segments of different streams through all layers."""

    def encode(self, segments: Sequence[Segment]) -> None:
        """Write what becomes of the segments' rows into their states; at least one segment."""


def take_rows(frame: Tensor, indices: Tensor | None) -> Tensor:
    """Return rows (1, K, C) of a frame (1, N, C): those of the indices (1, K), or all."""
    return frame if indices is None else gather_rows(frame, indices)
