# SPDX-License-Identifier: Apache-2.0
"""What `accelerate` asks of a family of models, and which families there are."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stc_video.pruners import PrunedTokens

__all__ = ["FrameEncoder", "ModelAdapter", "adapter_for"]

#: model type -> home of its adapter
_FAMILIES = {
    "llava_onevision": "stc_video.models.llava_onevision:LlavaOnevisionAdapter",
    "qwen2_vl": "stc_video.models.qwen_vl:QwenVLAdapter",
    "qwen2_5_vl": "stc_video.models.qwen_vl:QwenVLAdapter",
}
_SUPPORTED = (
    "LlavaOnevisionForConditionalGeneration, Qwen2VLForConditionalGeneration and "
    "Qwen2_5_VLForConditionalGeneration of transformers from 4.57 on"
)


class FrameEncoder(Protocol):
    """Encodes and prunes the frames of a stream, with whatever is attached to the model."""

    def encode(self, pixels: Tensor, stream: str) -> Tensor:
        """Features (F, N, D) of the next frames of a stream."""

    def prune(
        self, features: Tensor, stream: str, grid: tuple[int, int] | None = None
    ) -> PrunedTokens:
        """The tokens of frames (F, N, D) that enter the language model."""

    def forget(self, stream: str) -> None:
        """Drop what is kept of a stream."""


class ModelAdapter(ABC):
    """What is particular to a family of models.

    Parameters
    ----------
    model
        The model; it is read, not changed.
    positions
        How kept tokens are numbered: one of `allowed_positions`, or None for the first of them.

    Attributes
    ----------
    tower
        The vision tower.
    """

    allowed_positions: tuple[str, ...]
    tower: nn.Module

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        positions = self.allowed_positions[0] if positions is None else positions
        if positions not in self.allowed_positions:
            raise ValueError(
                f"accelerate: positions must be one of {', '.join(self.allowed_positions)}, "
                f"got {positions!r}"
            )
        self.model = model
        self.positions = positions

    @abstractmethod
    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run the vision side.

        Parameters
        ----------
        pixels
            (streams * F, ...) frames, those of each stream together.
        streams
            How many streams they are of.

        Returns
        -------
        Tensor
            (streams * F, N, D) what would enter the language model.
        """

    @abstractmethod
    def grid(self, pixels: Tensor | None = None) -> tuple[int, int] | None:
        """(H, W) of the tokens of a frame; None if it depends on frames that are not given."""

    @abstractmethod
    def forward(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own forward on a prompt without the pruned tokens."""

    @abstractmethod
    def generate(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own generate on a prompt without the pruned tokens."""

    def restore(self) -> None:
        """Take back what calls have left on the model."""
        return


def adapter_for(model: Any, positions: str | None) -> ModelAdapter:
    """Return the adapter of a model's family.

    Raises
    ------
    UnsupportedModelError
        If there is none, naming what was found.
    ValueError
        If the family cannot number the kept tokens like that.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind not in _FAMILIES or not hasattr(model, "generate"):
        found = type(model).__name__ + ("" if kind is None else f" (model type {kind})")
        raise UnsupportedModelError(f"accelerate: supported are {_SUPPORTED}, got {found}")
    home, _, name = _FAMILIES[kind].partition(":")
    make: type[ModelAdapter] = getattr(importlib.import_module(home), name)
    return make(model, positions)
