# SPDX-License-Identifier: Apache-2.0
"""Reports on the frames that were pushed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stc_video.cacher import FrameRecord
from stc_video.pruners import PrunedTokens


@dataclass(frozen=True, eq=False)
class PushedFrame:
    """Report on a frame that was pushed.

    Attributes
    ----------
    number
        Running number in the stream, from 0.
    time
        When it was taken, in seconds, or None.
    grid
        (H, W) of its tokens before pruning.
    kept
        Indices on this grid of the tokens that entered the language model, ascending.
    record
        What the cacher did, such as which tokens of the tower were encoded anew; None without one.
    """

    number: int
    time: float | None
    grid: tuple[int, int]
    kept: tuple[int, ...]
    record: FrameRecord | None


def pushed_frames(
    first: int,
    times: Sequence[float | None],
    grid: tuple[int, int],
    kept: PrunedTokens,
    records: Sequence[FrameRecord],
) -> list[PushedFrame]:
    """Describe frames that were encoded and pruned.

    Parameters
    ----------
    first
        Number of the first.
    times
        When each was taken.
    grid
        (H, W) of their tokens before pruning.
    kept
        Their kept tokens.
    records
        The cacher's record of each; empty without a cacher.
    """
    indices = [tuple(i for i in row if i >= 0) for row in kept.indices.tolist()]
    each: Sequence[FrameRecord | None] = list(records) or [None] * len(indices)
    return [
        PushedFrame(first + row, time, grid, row_indices, record)
        for row, (time, row_indices, record) in enumerate(zip(times, indices, each, strict=True))
    ]
