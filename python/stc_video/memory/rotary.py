# SPDX-License-Identifier: Apache-2.0
"""Rotary positions, exact for streams of any length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError

__all__ = ["Rotary", "turned"]

_FIXED = ("default", "linear", "llama3", "yarn")


class Rotary:
    """Turns queries and keys by their positions, and keys on by a difference of positions.

    Angles are computed in float64: after an hour of video a float32 angle is wrong by hundredths.

    Parameters
    ----------
    module
        The language model's ``rotary_emb``.
    """

    def __init__(self, module: nn.Module) -> None:
        rope: Any = module
        kind = getattr(rope, "rope_type", "default")
        if kind not in _FIXED:
            raise UnsupportedModelError(
                f"memory: rotary positions must be of type {', '.join(_FIXED)}, got {kind!r}, "
                "whose frequencies change with the length"
            )
        self._module = rope
        self._scaling = float(getattr(rope, "attention_scaling", 1.0))

    @property
    def width(self) -> int:
        """Size of the heads that it turns."""
        return 2 * int(self._module.inv_freq.numel())

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n, d) float32 of positions (n,), for new queries and keys."""
        cos, sin = self._angles(positions)
        return cos * self._scaling, sin * self._scaling

    def shift_table(self, differences: Tensor) -> tuple[Tensor, Tensor]:
        """As `table`, for keys that are turned already and move by these differences."""
        return self._angles(differences)

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        inverse: Tensor = self._module.inv_freq
        # On the CPU, because not every device has float64.
        angles = positions.cpu().double()[:, None] * inverse.cpu().double()
        angles = torch.cat([angles, angles], dim=-1)
        device = inverse.device
        return angles.cos().float().to(device), angles.sin().float().to(device)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., n, d) by tables (n, d), in float32; the dtype stays."""
    wide = x.float()
    half = wide.shape[-1] // 2
    crossed = torch.cat([-wide[..., half:], wide[..., :half]], dim=-1)
    return (wide * cos + crossed * sin).to(x.dtype)
