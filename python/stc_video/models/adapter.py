# SPDX-License-Identifier: Apache-2.0
"""Adapters: the interface through which `accelerate` runs a family of models."""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.nn.functional import pad

from stc_video.errors import UnsupportedModelError
from stc_video.models.families import family_of, supported_classes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stc_video.memory import VideoPlace
    from stc_video.pruners import PrunedTokens


#: methods of the inner model by which its own calls run the tower
PICTURE_METHODS = ("get_image_features", "get_video_features")


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


class SessionAdapter(ABC):
    """Everything particular to a family of models in a session of one stream."""

    @abstractmethod
    def prepare(
        self, pictures: Any, timestamps: Sequence[float] | float | None
    ) -> tuple[Tensor | None, list[float | None]]:
        """Make frames (F, ...) of the next pictures, with the time at which each was taken.

        None if there are not enough pictures for a frame yet.
        """

    @property
    def is_incomplete(self) -> bool:
        """Whether pictures wait for more before they are a frame."""
        return False

    def complete(self) -> tuple[Tensor, list[float | None]] | None:
        """Make a frame of pictures that wait for more, if there are any."""
        return None

    @abstractmethod
    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, VideoPlace | None]:
        """Place the next frame.

        Parameters
        ----------
        kept
            (n,) int64 on the CPU, places of the kept tokens in the frame.
        grid
            (H, W) of the frame's tokens.

        Returns
        -------
        tuple
            Positions of the kept tokens, counted from the first free one, (n,) or (3, n); how many
            positions the frame takes; its place if they are time, height and width.
        """

    #: what a chat template is given in the place of a video
    content = "video"
    #: text around a video's frames, where the chat template writes its mark
    intro, outro = "", ""

    def mark(self, tokenizer: Any, placeholder: int) -> str:
        """Return the text that a chat template writes for a whole video."""
        text: str = tokenizer.convert_ids_to_tokens(placeholder)
        return text

    def frame_text(self, time: float | None) -> tuple[list[int], list[int]]:
        """Ids of the text before and behind the tokens of the next frame, if there is any."""
        return [], []

    def ending(self) -> Tensor | None:
        """Embedding (D,) of what ends a video, if anything does."""
        return None

    def before_answer(self, cache: Any) -> None:
        """Take note of the cache that an answer will be generated from."""
        return

    def state(self) -> Any:
        """Return the state of the stream, to be saved with it."""
        return None

    def restore(self, state: Any) -> None:
        """Take over what :meth:`state` returned; None for a new stream."""
        return


class ModelAdapter(ABC):
    """Everything particular to a family of models.

    Parameters
    ----------
    model
        The model; it is read, not changed.
    positions
        How kept tokens are numbered: one of `allowed_positions`, or None for the first of them.

    Attributes
    ----------
    language_model_name
        Attribute of the inner model that is the language model without its head.
    tower
        The vision tower.
    tower_grid
        (H, W) of the tower's patch tokens; None if it depends on the frames.
    tower_lock
        Held by the thread that runs the tower.
    deep
        How many layers of the language model are given features of their own (deepstack): a token
        then is (1 + deep) * D values, what enters the language model first.
    bidirectional
        Whether the tokens of a frame see each other in the language model, whatever their order.
    """

    allowed_positions: tuple[str, ...]
    language_model_name = "language_model"
    tower: nn.Module
    tower_grid: tuple[int, int] | None = None
    deep: int = 0
    bidirectional: bool = False

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        positions = self.allowed_positions[0] if positions is None else positions
        if positions not in self.allowed_positions:
            raise ValueError(
                f"accelerate: positions must be one of {', '.join(self.allowed_positions)}, "
                f"got {positions!r}"
            )
        self.model = model
        self.positions = positions
        self.tower_lock = threading.RLock()

    @abstractmethod
    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower and projector.

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

    @abstractmethod
    def session_adapter(self, processor: Any) -> SessionAdapter:
        """Prepare for a session with the model's processor or tokenizer."""

    @property
    def placeholder(self) -> int:
        """Id of the placeholder of a video's token."""
        model: Any = self.model
        return int(model.config.video_token_id)

    @property
    def language_model(self) -> nn.Module:
        """The language model without its head."""
        model: Any = self.model
        found: nn.Module = getattr(model.model, self.language_model_name)
        return found

    def embed(self, ids: Tensor) -> Tensor:
        """Tokens (..., (1 + deep) * D) of text."""
        model: Any = self.model
        # A copy: the embedding may hand out what requires a gradient.
        embeds: Tensor = model.get_input_embeddings()(ids).clone()
        return pad(embeds, (0, self.deep * embeds.shape[-1])) if self.deep else embeds

    def before_answer(self, cache: Any) -> None:
        """Take note of the cache that a session's answer will be generated from."""
        return

    def attach(self) -> None:
        """Put on the model whatever calls need."""
        return

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
    kind: Any = getattr(getattr(model, "config", None), "model_type", None)
    family = family_of(kind)
    # A wrapper such as PEFT's has the configuration of the model inside it, and other parts.
    names = {ancestor.__name__ for ancestor in type(model).__mro__}
    if family is None or family.classes[kind] not in names:
        found = type(model).__name__ + ("" if kind is None else f" (model type {kind})")
        raise UnsupportedModelError(
            f"accelerate: supported are {supported_classes()} of transformers from 4.57 on, "
            f"got {found}"
        )
    home, _, name = family.adapter.partition(":")
    make: type[ModelAdapter] = getattr(importlib.import_module(home), name)
    return make(model, positions)
