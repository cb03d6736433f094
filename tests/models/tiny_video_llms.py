# SPDX-License-Identifier: Apache-2.0
"""Small whole models of the real classes, by family, and conversations with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny_qwen_vl import END, IMAGE, PAD, START, VIDEO, VOCABULARY

TEXT = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 4096, "pad_token_id": PAD, "bos_token_id": None,
    "eos_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
MARKS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
    "vision_end_token_id": END,
}  # fmt: skip
QWEN3_VISION = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_heads": 4,
    "num_position_embeddings": 16, "patch_size": 14,
}  # fmt: skip


def mrope(**more: Any) -> dict[str, Any]:
    settings = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True,
                "rope_theta": 10000.0, **more}  # fmt: skip
    # transformers 4.57 calls them rope_scaling.
    return {"rope_parameters": settings, "rope_scaling": settings}


def _qwen3_vl() -> Any:
    return transformers.Qwen3VLConfig(
        text_config={**TEXT, **mrope()},
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **MARKS,
    )


def _qwen3_vl_moe() -> Any:
    return transformers.Qwen3VLMoeConfig(
        text_config={**TEXT, **EXPERTS, **mrope()},
        vision_config={**QWEN3_VISION, "deepstack_visual_indexes": [0, 1]},
        **MARKS,
    )


def _qwen3_5() -> Any:
    text = {
        **TEXT, **mrope(mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }  # fmt: skip
    return transformers.Qwen3_5Config(text_config=text, vision_config=QWEN3_VISION, **MARKS)


#: family -> its configuration
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3-vl": _qwen3_vl,
    "qwen3-vl-moe": _qwen3_vl_moe,
    "qwen3.5": _qwen3_5,
}


def make_model(name: str) -> transformers.PreTrainedModel:
    """Random weights, large enough that every part of the context matters."""
    config = CONFIGS[name]()
    kind = transformers.AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 or parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.5 if "embed_tokens" in parameter_name else 0.15)
            model.lm_head.weight[IMAGE:] = 0.0  # no answer has a placeholder
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model
