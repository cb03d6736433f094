# SPDX-License-Identifier: Apache-2.0
"""One case: a tower, a number of streams, and how many tokens a cached frame re-encodes."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from stc_video.bench.frames import Clip, make_clip
from stc_video.bench.towers import BenchTower


@dataclass(frozen=True)
class Case:
    """The conditions of one comparison.

    Attributes
    ----------
    tower
        The tower.
    streams
        How many streams are encoded in one call.
    ratio
        The part of the tokens that a cached frame re-encodes.
    rows
        That many tokens, class token and registers among them.
    clip
        Frames in which exactly the patches among those change.
    half_clip
        Frames in which half as many change, which leaves the others to the refresh.
    """

    tower: BenchTower
    streams: int
    ratio: Fraction
    rows: int
    clip: Clip
    half_clip: Clip

    @classmethod
    def of(cls, tower: BenchTower, streams: int, ratio: Fraction) -> Case:
        """Make the frames of a case."""
        rows = tower.rows(ratio)
        patches = rows - tower.prefix_tokens
        whole, half = (
            make_clip(tower, streams, count) for count in (patches, max(1, patches // 2))
        )
        return cls(tower, streams, ratio, rows, whole, half)

    @property
    def patches(self) -> int:
        """Patches among the rows."""
        return self.rows - self.tower.prefix_tokens
