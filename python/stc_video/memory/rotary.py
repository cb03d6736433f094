# SPDX-License-Identifier: Apache-2.0
"""Rotary positions, exact for streams of any length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError

_FIXED = ("default", "linear", "llama3", "yarn")


class Rotary:
    """Rotates queries and keys by their positions, and rotated keys by a difference of positions.

    Angles are computed in float64: after an hour of video a float32 angle is wrong by hundredths.

    Parameters
    ----------
    module
        The language model's ``rotary_emb``.
    axis
        For positions in time, height and width (M-RoPE, arXiv 2409.12191): which of the three
        turns each frequency. None for positions in one row.
    layer_type
        Of the layers that it is for, where each type has frequencies of its own.

    Attributes
    ----------
    axes
        How many numbers a position has: 1 or 3.
    """

    def __init__(
        self, module: nn.Module, axis: Sequence[int] | None = None, layer_type: str = ""
    ) -> None:
        rope: Any = module
        kind, own = getattr(rope, "rope_type", "default"), ""
        if isinstance(kind, dict):  # Gemma 3
            kind, own = kind[layer_type], f"{layer_type}_"
        if kind not in _FIXED:
            raise UnsupportedModelError(
                f"memory: rotary positions must be of type {', '.join(_FIXED)}, got {kind!r}, "
                "whose frequencies change with the length"
            )
        self._module, self._name = rope, f"{own}inv_freq"
        self._scaling = float(getattr(rope, f"{own}attention_scaling", 1.0))
        self._axis = torch.tensor([0] if axis is None else list(axis))
        self.axes = 1 if axis is None else 1 + int(self._axis.max())

    @property
    def width(self) -> int:
        """Size of the heads that it rotates."""
        return 2 * int(self._inverse.numel())

    def table(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n, d) float32 for new queries and keys.

        ``positions`` are (axes, n), or (n,) where all axes have the same.
        """
        cos, sin = self._angles(positions)
        return cos * self._scaling, sin * self._scaling

    def shift_table(self, differences: Tensor) -> tuple[Tensor, Tensor]:
        """As `table`, for keys that are rotated already and move by these differences."""
        return self._angles(differences)

    def axes_of(self, first: Tensor, others: Tensor) -> Tensor:
        """Positions (axes, n) with one number (n,) on the first axis, and one on the others."""
        return torch.stack([first] + [others] * (self.axes - 1))

    @property
    def _inverse(self) -> Tensor:
        inverse: Tensor = getattr(self._module, self._name)
        return inverse

    def _angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        inverse = self._inverse
        # On the CPU, because not every device has float64.
        rows = positions.cpu().double()
        rows = rows[self._axis].T if rows.dim() == 2 else rows[:, None]
        angles = rows * inverse.cpu().double()
        angles = torch.cat([angles, angles], dim=-1)
        device = inverse.device
        return angles.cos().float().to(device), angles.sin().float().to(device)


def layer_rotaries(model: nn.Module, axis: Sequence[int] | None = None) -> list[Rotary]:
    """Return the positions of each layer of a language model; those of one type share them."""
    stack: Any = model
    types = getattr(stack.config, "layer_types", None) or [""] * len(stack.layers)
    modules = {kind: stack.rotary_emb for kind in types}
    if hasattr(stack, "rotary_emb_local"):  # Gemma 3 of transformers 4.57
        modules["sliding_attention"] = stack.rotary_emb_local
    found = {kind: Rotary(module, axis, kind) for kind, module in modules.items()}
    return [found[kind] for kind in types[: len(stack.layers)]]
