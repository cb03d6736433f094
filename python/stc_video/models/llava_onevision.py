# SPDX-License-Identifier: Apache-2.0
"""The vision side of LLaVA-OneVision: tower, projector and pooling, without the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["VisionSide"]


class VisionSide:
    """Runs the parts that turn a tower's output into language-model tokens, one by one.

    `get_video_features` differs from release to release (tensor or object, with or without the
    newline token); its parts have had the same call since the model was added.

    Parameters
    ----------
    model : LlavaOnevisionForConditionalGeneration
        Its language model is let go, so that its memory can be used for something else.

    Attributes
    ----------
    tower : Module
        The vision tower.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        inner: Any = model.model
        self.tower: nn.Module = inner.vision_tower
        self._projector: nn.Module = inner.multi_modal_projector
        self._pool = inner.apply_pooling
        self._layer: int | Sequence[int] = inner.config.vision_feature_layer
        self._drop_cls: bool = inner.config.vision_feature_select_strategy == "default"
        inner.language_model = None
        model.lm_head = None

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move tower and projector."""
        self.tower.to(device, dtype)
        self._projector.to(device, dtype)

    def tokens(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower.

        Parameters
        ----------
        inputs : dict
            `pixel_values` (F, 3, h, w).

        Returns
        -------
        Tensor
            (F, T, D): the hidden states that the projector takes. T = 729 at 384 px.
        """
        states = self.tower(**inputs, output_hidden_states=True).hidden_states
        if isinstance(self._layer, int):
            chosen: Tensor = states[self._layer]
            return chosen
        return torch.cat([states[layer] for layer in self._layer], dim=-1)

    def features(self, tokens: Tensor) -> Tensor:
        """Project and pool the tower's tokens.

        Parameters
        ----------
        tokens : Tensor
            (F, T, D) as `tokens` returns them.

        Returns
        -------
        Tensor
            (F, N, E): what enters the language model per frame. N = 196, a grid of 14 x 14, for
            the 27 x 27 tokens of a tower at 384 px.
        """
        if self._drop_cls:
            tokens = tokens[:, 1:]
        pooled: Tensor = self._pool(self._projector(tokens))
        return pooled

    def feature_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of `features` for a tower with this token grid: half, rounded up."""
        return (grid[0] + 1) // 2, (grid[1] + 1) // 2
