# SPDX-License-Identifier: Apache-2.0
"""Segments, which the ``motion`` policy hands to an encoder: rows of one stream's frame."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

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
    def places(self) -> Tensor | None:
        """(K,) int64 indices of the rows, each of which is written somewhere; None for all."""
        return None if self.indices is None else self.indices[0].long()

    @functools.cached_property
    def keys(self) -> Sequence[Tensor]:
        """(1, N, C) keys of each layer, as views of the state."""
        return self.state.keys[:, None].unbind(0)

    @functools.cached_property
    def values(self) -> Sequence[Tensor]:
        """(1, N, C) values of each layer, as views of the state."""
        return self.state.values[:, None].unbind(0)

    @functools.cached_property
    def x(self) -> Tensor:
        """(1, K, C) the rows of the input of the first layer."""
        return self.take(self.frame)

    def put_reference(self) -> None:
        """Note at which input the rows are encoded."""
        self.put(self.state.reference[None], self.take(self.compared))

    def take(self, frame: Tensor) -> Tensor:
        """Return this segment's rows (1, K, C) of a frame (1, N, C)."""
        return frame if self.places is None else frame.index_select(1, self.places)

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """Write this segment's rows (1, K, C) into a plane (1, N, C) of the state."""
        # torch's own operators: the checks of ours take five times as long as a write of few rows.
        if self.places is None:
            whole.copy_(rows)
        else:
            whole.index_copy_(1, self.places, rows)


class SegmentEncoder(Protocol):
    """Runs segments of different streams through all layers."""

    def encode(self, segments: Sequence[Segment]) -> None:
        """Write what becomes of the segments' rows into their states; at least one segment."""
