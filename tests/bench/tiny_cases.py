# SPDX-License-Identifier: Apache-2.0
"""Cases small enough for a test: towers of four layers, frames of sixteen patches."""

from __future__ import annotations

from fractions import Fraction

import torch
from tiny_towers import make_tower

from stc_video.bench.cases import Case
from stc_video.bench.towers import BenchTower


def tiny_case(
    name: str = "siglip",
    streams: int = 1,
    ratio: str = "1/4",
    *,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> Case:
    tower = BenchTower(name, make_tower(name).to(device=device, dtype=dtype))
    return Case.of(tower, streams, Fraction(ratio))
