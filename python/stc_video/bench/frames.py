# SPDX-License-Identifier: Apache-2.0
"""The frames that are encoded: noise, of which a chosen number of patches changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.bench.towers import BenchTower


@dataclass(frozen=True)
class Clip:
    """A first frame of each stream, and two that take turns after it.

    The three differ from each other in the same patches, so that each turn changes as many tokens,
    compared with the frame before as well as with the first one.

    Attributes
    ----------
    first
        (S, 3, H, W).
    turns
        Two of the same shape.
    changed
        (S, P) int64, the tokens that change, ascending.
    """

    first: Tensor
    turns: tuple[Tensor, Tensor]
    changed: Tensor

    def turn(self, number: int) -> Tensor:
        """The frame of a turn, from 0."""
        return self.turns[number % 2]


def make_clip(tower: BenchTower, streams: int, changed: int, *, seed: int = 0) -> Clip:
    """Make frames for a tower, in its type and on its device.

    Parameters
    ----------
    tower
        Gives size and grid of the frames.
    streams
        How many streams, S. Each has its own frames and its own patches that change.
    changed
        How many patches of a frame change, P.
    seed
        First frames are the same for the same seed, whatever changes later.
    """
    generator = torch.Generator().manual_seed(seed)
    side, patch = tower.side, int(tower.config.patch_size)
    size = int(tower.config.image_size)
    like = tower.weight

    def noise() -> Tensor:
        frames = torch.randn((streams, 3, size, size), generator=generator)
        return frames.to(device=like.device, dtype=like.dtype)

    first = noise()
    order = torch.stack([torch.randperm(side**2, generator=generator) for _ in range(streams)])
    patches = order[:, :changed].sort(dim=1).values
    is_changed = torch.zeros((streams, side**2), dtype=torch.bool).scatter(1, patches, True)
    blocks = is_changed.view(streams, 1, side, side)
    mask = torch.zeros((streams, 1, size, size), dtype=torch.bool)
    mask[..., : side * patch, : side * patch] = blocks.repeat_interleave(
        patch, dim=2
    ).repeat_interleave(patch, dim=3)
    mask = mask.to(like.device)
    turns = torch.where(mask, noise(), first), torch.where(mask, noise(), first)
    return Clip(first, turns, (patches + tower.prefix_tokens).to(like.device))
