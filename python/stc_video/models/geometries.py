# SPDX-License-Identifier: Apache-2.0
"""Towers with random weights, by the geometry of a published model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["GEOMETRIES", "RANDOM_NOTICE", "build_random"]

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


def build_random(geometry: str, *, seed: int = 0) -> PreTrainedModel:
    """Build a model with random weights.

    Parameters
    ----------
    geometry : str
        A key of `GEOMETRIES`.
    seed : int
        The weights are the same for the same seed; the global generator is left as it was.

    Returns
    -------
    PreTrainedModel
        On the CPU, float32, in eval mode.

    Raises
    ------
    ValueError
        If the geometry is not known.
    """
    if geometry not in GEOMETRIES:
        raise ValueError(
            f"random weights: the geometry must be one of {', '.join(GEOMETRIES)}; got {geometry!r}"
        )
    from transformers import AutoConfig

    from stc_video.models.checkpoint import model_class

    model_type, settings = GEOMETRIES[geometry]
    config = AutoConfig.for_model(model_type, **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = model_class(model_type)(config)
    model.train(False)
    return model
