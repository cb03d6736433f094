# SPDX-License-Identifier: Apache-2.0
"""The projects: what is applied to each, and one way to run it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import upstream_models
from torch import Tensor

from stc_video.integrations import dispider, llava_next, rekv, streamforest


@dataclass(frozen=True)
class Project:
    """A model, what is applied to it, and one way to run it.

    Attributes
    ----------
    name
        Of the project.
    model
        With random weights.
    apply
        Our function.
    run
        Runs the model on frames (F, 3, H, W) in [0, 1]; returns what comes out.
    size
        Pixels along a side of a frame.
    tokens
        Tokens of a frame in front of the pruner.
    """

    name: str
    model: Any
    apply: Callable[..., Any]
    run: Callable[[Any, Tensor], list[Tensor]]
    size: int
    tokens: int

    def frames(self, seed: int = 0) -> Tensor:
        """A walk of a few frames."""
        return walk(32 if self.name == "dispider" else 7, self.size, seed)


def walk(frames: int, size: int, seed: int = 0) -> Tensor:
    """Frames of which each differs from the last in one place."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.rand((3, size, size), generator=generator)]
    for number in range(1, frames):
        frame = made[-1].clone()
        start = 14 * number % (size - 28)
        frame[:, start : start + 28, 14:42] = torch.rand((3, 28, 28), generator=generator)
        made.append(frame)
    return torch.stack(made)


def _run_rekv(model: Any, frames: Tensor) -> list[Tensor]:
    pictures = (frames.permute(0, 2, 3, 1) * 255).to(torch.uint8)
    return upstream_models.run_rekv(model, pictures)


APPLY = {
    "rekv": functools.partial(rekv.apply, tokens_per_frame=6),
    "streamforest": streamforest.apply,
    "dispider": functools.partial(dispider.apply, tokens_per_frame=6),
    "llava_next": functools.partial(llava_next.apply, tokens_per_frame=6),
}
RUN = {
    "rekv": _run_rekv,
    "streamforest": upstream_models.run_llava,
    "dispider": upstream_models.run_dispider,
    "llava_next": upstream_models.run_llava,
}
#: size of a frame and number of its tokens, of the authors' models
UPSTREAM = {
    "rekv": (112, 16),
    "streamforest": (384, 729),
    "dispider": (112, 16),
    "llava_next": (384, 169),
}
KINDS = [(name, origin) for name in APPLY for origin in ("stand-in", "upstream")]
