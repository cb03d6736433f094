# SPDX-License-Identifier: Apache-2.0
"""LLaVA-OneVision: its vision side, and its calls with a pruned prompt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.cache_argument import CACHE
from stc_video.errors import UnsupportedModelError
from stc_video.models.adapter import FrameEncoder, ModelAdapter, SessionSide
from stc_video.models.pictures import to_pixels, to_times, warn_if_unprepared
from stc_video.models.placeholders import PrunedPrompt, prune_prompt, with_prompt
from stc_video.models.preprocess import Preprocessor, default_processor
from stc_video.pruners import PrunedTokens
from stc_video.towers.pre_norm import PreNormTower
from stc_video.versions import VIDEO_MODELS_FROM, require_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["LlavaOnevisionAdapter", "VisionSide", "frame_preprocessor"]


class VisionSide:
    """Runs the parts that turn a tower's output into language-model tokens, one by one.

    `get_video_features` differs from release to release (tensor or object, with or without the
    newline token); its parts have had the same call since the model was added.

    Parameters
    ----------
    model : LlavaOnevisionForConditionalGeneration
        It is read, not changed.

    Attributes
    ----------
    tower : Module
        The vision tower.

    Raises
    ------
    UnsupportedModelError
        If transformers is of a release that is not supported.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require_transformers(VIDEO_MODELS_FROM, "LLaVA-OneVision")
        inner: Any = model.model
        self.tower: nn.Module = inner.vision_tower
        self._projector: nn.Module = inner.multi_modal_projector
        self._pool = inner.apply_pooling
        self._layers = _layers_of(self.tower, inner.config.vision_feature_layer)
        self._drop_cls: bool = inner.config.vision_feature_select_strategy == "default"

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
        # Asking for hidden states would keep those of every layer on most releases.
        with _outputs_of(self._layers) as outputs:
            self.tower(**inputs)
        return torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]

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


class LlavaOnevisionAdapter(ModelAdapter):
    """Runs a LLaVA-OneVision on prompts without the pruned tokens."""

    allowed_positions = ("repacked", "original")

    def __init__(self, model: PreTrainedModel, positions: str | None) -> None:
        super().__init__(model, positions)
        self._side = VisionSide(model)
        self.tower = self._side.tower
        config: Any = self.tower.config
        size = config.image_size // config.patch_size
        self._grid = self._side.feature_grid((size, size))
        # Positions of the prompt that `generate` is called with, for its first step.
        self._prompt = threading.local()

    def features(self, pixels: Tensor, streams: int) -> Tensor:
        """Run tower, projector and pooling on frames (F, 3, h, w)."""
        return self._side.features(self._side.tokens({"pixel_values": pixels}))

    def grid(self, pixels: Tensor | None = None) -> tuple[int, int]:
        """(H, W) of the tokens of a frame, the same for all."""
        return self._grid

    def session_side(self, processor: Any) -> SessionSide:
        """Prepare for a session with the model's processor or tokenizer."""
        return _LlavaSessionSide(self, getattr(processor, "image_processor", None))

    def forward(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own forward on a prompt without the pruned tokens."""
        positions = getattr(self._prompt, "positions", None)
        embeds = arguments.get("inputs_embeds")
        if positions is not None and embeds is not None:
            # The first step of `generate`, which knows no other than consecutive positions.
            self._prompt.positions = None
            repeats = embeds.shape[0] // positions.shape[0]
            arguments["position_ids"] = positions.repeat_interleave(repeats, 0)
        if arguments.get("pixel_values_videos") is None or arguments.get("input_ids") is None:
            return stock(**arguments)
        return stock(**self._pruned(frames, arguments).arguments)

    def generate(
        self, frames: FrameEncoder, stock: Callable[..., Any], arguments: dict[str, Any]
    ) -> Any:
        """Run the model's own generate on a prompt without the pruned tokens."""
        given = arguments.get("input_ids")
        if arguments.get("pixel_values_videos") is None or given is None:
            return stock(**arguments)
        prompt = self._pruned(frames, arguments)
        arguments = prompt.arguments
        positions = arguments.pop("position_ids", None)
        if positions is not None:
            # Decoding goes on at the number of tokens so far. Attention sees differences only,
            # so all positions may be shifted to meet it.
            last = arguments["attention_mask"].sum(-1, keepdim=True) - 1
            self._prompt.positions = positions - positions[:, -1:] + last
        if arguments.get("max_length") is not None:
            arguments["max_length"] -= prompt.removed
        try:
            made = stock(input_ids=prompt.input_ids, **arguments)
        finally:
            self._prompt.positions = None
        return with_prompt(made, given, prompt.input_ids.shape[1])

    def _pruned(self, frames: FrameEncoder, arguments: dict[str, Any]) -> PrunedPrompt:
        cache = arguments.get(CACHE)
        if cache is not None and cache.get_seq_length() > 0:
            raise ValueError(
                "accelerated model: a video cannot be added to a cache with tokens; give the whole "
                "conversation at once, or use StreamingSession"
            )

        def encode(pixels: Tensor) -> list[PrunedTokens]:
            """Encode and prune videos (V, F, 3, h, w), each as a stream of its own."""
            kept = []
            for number, video in enumerate(pixels):
                stream = f"accelerate:{threading.get_ident()}:{number}"
                kept.append(frames.prune(frames.encode(video, stream), stream))
                frames.forget(stream)
            return kept

        height, width = self._grid
        with torch.no_grad():
            return prune_prompt(self.model, arguments, encode, height * width, self.positions)


class _LlavaSessionSide(SessionSide):
    """Pictures of the tower's size, positions in one row, a newline behind the video."""

    def __init__(self, adapter: LlavaOnevisionAdapter, images: Any) -> None:
        self._model: Any = adapter.model
        self._is_original = adapter.positions == "original"
        self._preprocessor = frame_preprocessor(adapter.tower, images)
        self._size = int(self._model.config.vision_config.image_size)
        self._has_seen = False

    def prepare(
        self, pictures: Any, timestamps: Sequence[float] | float | None
    ) -> tuple[Tensor | None, list[float | None]]:
        """Each picture is a frame (F, 3, S, S)."""
        if not self._has_seen:
            self._has_seen = True
            warn_if_unprepared(pictures, self._size)
        pixels = to_pixels(pictures, self._preprocessor, self._size)
        return pixels, to_times(timestamps, len(pixels))

    def place(self, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, int, None]:
        """One position per token."""
        if self._is_original:
            return kept, grid[0] * grid[1], None
        return torch.arange(len(kept)), len(kept), None

    def ending(self) -> Tensor | None:
        """Embedding of the newline token."""
        newline: Tensor = self._model.model.image_newline
        return newline


def frame_preprocessor(tower: nn.Module, processor: Any | None) -> Preprocessor:
    """Return what prepares frames for the tower.

    The processor of the whole model cuts images into tiles; a video frame is one picture.

    Parameters
    ----------
    tower : Module
        The vision tower.
    processor : object, optional
        The model's image or video processor, whose mean, deviation and resampling are taken over.

    Returns
    -------
    Preprocessor
        For frames of any size.
    """
    config: Any = tower.config
    keep = {k: getattr(processor, k, None) for k in ("image_mean", "image_std", "resample")}
    override = {k: v for k, v in keep.items() if v is not None}
    made = default_processor(config.model_type, config.image_size, **override)
    return Preprocessor(made, config.patch_size)


def _layers_of(tower: nn.Module, chosen: int | Sequence[int]) -> list[nn.Module]:
    """Layers whose outputs are the chosen hidden states; 0 would be the input of the first."""
    blocks = PreNormTower.of(tower).blocks
    numbers = [chosen] if isinstance(chosen, int) else list(chosen)
    places = [number % (len(blocks) + 1) for number in numbers]
    if 0 in places:
        raise UnsupportedModelError(
            "LLaVA-OneVision: vision_feature_layer must name outputs of layers of the tower, "
            f"got {chosen}"
        )
    return [blocks[place - 1].layer for place in places]


@contextmanager
def _outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what the layers return while the block runs, in the order of the layers."""
    found: dict[nn.Module, Tensor] = {}
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        found[layer] = output[0] if isinstance(output, tuple) else output

    hooks = [layer.register_forward_hook(keep) for layer in dict.fromkeys(layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
    outputs += [found[layer] for layer in layers]
