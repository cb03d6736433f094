# SPDX-License-Identifier: Apache-2.0
"""One case: a tower, a number of streams, and how many tokens a cached frame re-encodes."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from stc_video.bench.frames import Clip, make_clip
from stc_video.bench.towers import BenchTower

__all__ = ["Case"]


@dataclass(frozen=True)
class Case:
    """What one comparison is about.

    Attributes
    ----------
    tower
        The tower.
    streams
        How many streams are encoded in one call.
    ratio
        The part of the tokens that a cached frame re-encodes.
    """

    tower: BenchTower
    streams: int
    ratio: Fraction

    @cached_property
    def rows(self) -> int:
        """Tokens that a cached frame re-encodes, class token and registers among them."""
        return self.tower.rows(self.ratio)

    @property
    def patches(self) -> int:
        """Patches among them."""
        return self.rows - self.tower.prefix_tokens

    @cached_property
    def clip(self) -> Clip:
        """Frames in which exactly those patches change."""
        return make_clip(self.tower, self.streams, self.patches)

    @cached_property
    def half_clip(self) -> Clip:
        """Frames in which half as many change, which leaves the others to the refresh."""
        return make_clip(self.tower, self.streams, max(1, self.patches // 2))
