# SPDX-License-Identifier: Apache-2.0
"""Encoding a frame before the host knows how much of it changed.

The host cannot launch a pass of the right shape before it has asked the device how many tokens
changed, and while it asks, the device is idle. So the pass is launched for as many rows as the last
frame's, and the device itself decides whether that is the right number: if it is not, or the frame
is one that must not be kept, the rows are written nowhere, and the frame is encoded once more when
the host knows. What is handed out is the same either way.

Shapes: S streams, N tokens, C channels, K rows of one stream, class token and registers among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_kernels import gather_rows
from stc_video.cacher.motion.changes import Comparison, stacked
from stc_video.cacher.motion.propagation import Refreshed, moved
from stc_video.cacher.motion.state import motion_state
from stc_video.cacher.streams import Stream


@dataclass(frozen=True)
class Ahead:
    """A frame of one stream that was encoded ahead.

    Attributes
    ----------
    order
        (N,) int64, its tokens: those that are always encoded, those that changed, the stalest.
    staleness
        (N,) float32 of the tokens as if none were encoded.
    indices
        (1, K) int32 ascending, the first of them, which were encoded if that was the right number.
    outputs
        (K, C) outputs of these, in that order, before.
    moves
        (K,) float32, 1 - cosine of these to what they are now; on the host once it has waited.
    """

    order: Tensor
    staleness: Tensor
    indices: Tensor
    outputs: Tensor
    moves: Tensor

    @property
    def rows(self) -> int:
        """Number of them, K."""
        return self.indices.shape[1]

    def refreshed(self, first: int) -> Refreshed:
        """Return the rows from a place in the order on, which had not changed."""
        places = self.order[first : self.rows], self.order[self.rows :]
        return Refreshed(*places, self.outputs[first:])

    def drift(self, first: int) -> float:
        """Return what these moved by on average."""
        return float(self.moves[first:].mean())


def ranked(
    streams: Sequence[Stream], similarity: Tensor, is_changed: Tensor, prefix: int, age: float
) -> tuple[Tensor, Tensor]:
    """Order tokens by how much they need to be encoded.

    Parameters
    ----------
    streams
        The streams, S of them, each with a state.
    similarity, is_changed
        (S, N) cosine to the input at which each token was last encoded, and whether it changed.
    prefix
        Class token and registers, which come first.
    age
        What every frame adds to the staleness of a token.

    Returns
    -------
    tuple of Tensor
        (S, N) int64 order, and (S, N) float32 staleness as if none were encoded.
    """
    before = stacked([motion_state(stream).staleness for stream in streams])
    staleness = before + ((1.0 - similarity) + age)
    rank = torch.where(is_changed, torch.inf, staleness)
    rank[:, :prefix] = torch.inf
    return torch.sort(rank, dim=1, descending=True, stable=True).indices, staleness


def go_ahead(
    streams: Sequence[Stream],
    seen: Comparison,
    expected: Mapping[int, int],
    rows_for: Tensor,
    prefix: int,
    age: float,
    encode: Callable[[Mapping[int, Tensor]], None],
) -> dict[int, Ahead]:
    """Encode frames of some streams for an expected number of rows each.

    Parameters
    ----------
    streams
        All streams of the call.
    seen
        What the device found out about their frames.
    expected
        Number of a stream that is to go ahead -> number of its patches that are encoded.
    rows_for
        (P + 1,) int64, number of patches that are encoded if so many of the P changed.
    prefix, age
        As for :func:`ranked`.
    encode
        Encodes rows (1, K) int32 of streams, by number of the stream.
    """
    if not expected or seen.counts is None or seen.repeated is None:
        return {}
    assert seen.similarity is not None
    assert seen.is_changed is not None
    place = {number: row for row, number in enumerate(seen.known)}
    groups: dict[int, list[int]] = {}
    for number, patches in expected.items():
        groups.setdefault(patches, []).append(number)
    begun = {}
    for patches, numbers in groups.items():
        rows = [place[number] for number in numbers]
        is_right = _of(seen.finite, numbers) & ~_of(seen.repeated, rows).bool()
        is_right &= rows_for[_of(seen.counts, rows)] == patches
        of_group = [streams[number] for number in numbers]
        changes = _of(seen.similarity, rows), _of(seen.is_changed, rows)
        order, staleness = ranked(of_group, *changes, prefix, age)
        first = order[:, : patches + prefix]
        indices = torch.where(is_right[:, None], first.sort(dim=1).values, -1).int()
        begun[patches] = order, staleness, indices, _outputs(of_group, first)
    encode(
        {
            number: begun[patches][2][at, None]
            for patches, numbers in groups.items()
            for at, number in enumerate(numbers)
        }
    )
    ahead: dict[int, Ahead] = {}
    for patches, numbers in groups.items():
        order, staleness, indices, before = begun[patches]
        after = _outputs([streams[number] for number in numbers], order[:, : indices.shape[1]])
        parts = zip(order, staleness, indices[:, None], before, moved(before, after), strict=True)
        ahead |= dict(zip(numbers, (Ahead(*part) for part in parts), strict=True))
    return ahead


def _of(fact: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of what is known; all of it if they are all of them."""
    return fact if len(rows) == len(fact) else torch.stack([fact[row] for row in rows])


def _outputs(streams: Sequence[Stream], rows: Tensor) -> Tensor:
    """Outputs (S, K, C) of some tokens (S, K) as they are now."""
    return gather_rows(stacked([motion_state(stream).output for stream in streams]), rows)
