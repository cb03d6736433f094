# SPDX-License-Identifier: Apache-2.0
"""Towers with random weights, by the geometry of a published model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RANDOM_NOTICE = "random weights: the pictures and similarities say nothing about a trained model"

# name -> (model type, settings of its configuration)
GEOMETRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "siglip-so400m": (
        "siglip_vision_model",
        {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
    ),
    "siglip-base": (
        "siglip_vision_model",
        {"image_size": 224, "patch_size": 16, "vision_use_head": False},
    ),
    "clip-l-336": (
        "clip_vision_model",
        {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    ),
    "dinov2-small": (
        "dinov2",
        {
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 14,
        },
    ),
    "dinov2-base": (
        "dinov2",
        {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 224,
            "patch_size": 14,
        },
    ),
    "dinov2-large": (
        "dinov2",
        {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 224,
            "patch_size": 14,
        },
    ),
    # For tests: the token counts of LLaVA-OneVision (729 to 196 per frame), little else.
    "llava-onevision-tiny": (
        "llava_onevision",
        {
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 48,
                "intermediate_size": 96,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
            },
            "text_config": {
                "model_type": "qwen2",
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 1,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 512,
            },
            "image_token_index": 500,
            "video_token_index": 501,
        },
    ),
}


#: those that are a vision tower and nothing else
TOWERS = tuple(name for name, (kind, _) in GEOMETRIES.items() if kind != "llava_onevision")


def build_random(geometry: str, *, layers: int | None = None, seed: int = 0) -> PreTrainedModel:
    """Build a model with random weights.

    Parameters
    ----------
    geometry : str
        A key of `GEOMETRIES`.
    layers : int, optional
        Number of layers of a tower, instead of its own.
    seed : int
        The weights are the same for the same seed; the global generator is left as it was.

    Returns
    -------
    PreTrainedModel
        On the CPU, float32, in eval mode.

    Raises
    ------
    ValueError
        If the geometry is not known, or has layers of more than one kind to choose a number of.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(
            f"random weights: the geometry must be one of {', '.join(GEOMETRIES)}; got {geometry!r}"
        )
    from transformers import AutoConfig

    from stc_video.loading.checkpoint import model_class

    model_type, settings = GEOMETRIES[geometry]
    if layers is not None:
        if geometry not in TOWERS:
            raise ValueError(f"layers: {geometry} is not a tower; choose from {', '.join(TOWERS)}")
        settings = settings | {"num_hidden_layers": layers}
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(model_type)(config)
    model.train(False)
    return model
