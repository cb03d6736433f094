# SPDX-License-Identifier: Apache-2.0
"""Clips of made-up frames, encoded by a tiny tower."""

from __future__ import annotations

import torch

from stc_video.loading.vision import LoadedModel
from stc_video.studies.fidelity.measure import DenseClip

SIDE = 56  # 4 x 4 tokens


def dense_clip(
    model: LoadedModel, name: str = "clip", frames: int = 6, *, fps: float = 2.0, motion: int = 4
) -> DenseClip:
    """A textured picture in which a bright square moves by some pixels per frame."""
    generator = torch.Generator().manual_seed(len(name))
    ground = torch.rand(1, 3, SIDE, SIDE, generator=generator)
    inputs = []
    for number in range(frames):
        picture = ground.clone()
        left = (number * motion) % (SIDE - 16)
        picture[..., 8:24, left : left + 16] = 3.0
        inputs.append({"pixel_values": picture})
    with torch.inference_mode():
        dense = tuple(model.encode(given) for given in inputs)
    return DenseClip(name, fps, tuple(inputs), dense, grid=(4, 4))
