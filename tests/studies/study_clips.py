# SPDX-License-Identifier: Apache-2.0
"""Small clips as a study sees them, made without a tower."""

from __future__ import annotations

import io

import torch
from PIL import Image

from stc_video.pruners import Attention
from stc_video.studies.pruning.clips import CELL, EncodedClip
from stc_video.studies.reference_masks import moved_tokens

GRID = (4, 5)
TOKENS = GRID[0] * GRID[1]


def clip(name: str = "clip", frames: int = 6, *, seed: int = 0, attention: bool = True):
    """Features that drift, a square that moves, and a salient column."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    pixels = torch.full((frames, 3, CELL * GRID[0], CELL * GRID[1]), 0.3)
    for frame in range(frames):
        left = CELL * (frame % GRID[1])
        pixels[frame, :, :CELL, left : left + CELL] = 0.9
    salient = torch.zeros(frames, *GRID, dtype=torch.bool)
    salient[:, :, 2] = True
    buffer = io.BytesIO()
    Image.new("RGB", (70, 56), (120, 90, 140)).save(buffer, "WEBP")
    return EncodedClip(
        name=name,
        times=tuple(0.5 * frame for frame in range(frames)),
        features=random(1, TOKENS, 16) + 0.4 * random(frames, TOKENS, 16).cumsum(0),
        grid=GRID,
        pixels=pixels,
        moved=moved_tokens(pixels, GRID),
        salient=salient.flatten(1),
        attention=Attention(
            random(frames, TOKENS + 1, 2, 8), random(frames, TOKENS + 1, 2, 8), prefix=1
        )
        if attention
        else None,
        pictures=(buffer.getvalue(),) * frames,
    )
