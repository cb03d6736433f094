# SPDX-License-Identifier: Apache-2.0
"""The vision side of LLaVA-OneVision: tower, projector and pooling, without the language model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError
from stc_video.models.preprocess import Preprocessor, default_processor
from stc_video.towers.pre_norm import PreNormTower
from stc_video.versions import VIDEO_MODELS_FROM, require_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["VisionSide", "frame_preprocessor"]


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
