# SPDX-License-Identifier: Apache-2.0
"""Small whole models of the real classes, by family, and conversations with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tiny_qwen_vl import (
    END,
    IMAGE,
    PAD,
    START,
    TOKENS,
    VIDEO,
    VOCABULARY,
    grid_of,
    token_types,
    video,
)

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


def _qwen3_5(**more: Any) -> dict[str, Any]:
    return {
        **TEXT, **mrope(mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, **more,
    }  # fmt: skip


def _llama(**more: Any) -> dict[str, Any]:
    return {**TEXT, "model_type": "llama", **more}


def _internvl() -> Any:
    return transformers.InternVLConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": [56, 56], "patch_size": [14, 14],
        },
        text_config={**TEXT, "model_type": "qwen2"}, image_token_id=IMAGE, image_seq_length=4,
        downsample_ratio=0.5,
    )  # fmt: skip


def _smolvlm() -> Any:
    return transformers.SmolVLMConfig(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
        },
        text_config=_llama(), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD,
        tie_word_embeddings=False,
    )  # fmt: skip


def _gemma3() -> Any:
    return transformers.Gemma3Config(
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
            "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={**TEXT, "sliding_window": 8, "query_pre_attn_scalar": 16,
                     "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        image_token_id=IMAGE, image_token_index=IMAGE, mm_tokens_per_image=4, boi_token_index=START,
        eoi_token_index=END,
    )  # fmt: skip


def _llava_next_video() -> Any:
    return transformers.LlavaNextVideoConfig(
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14,
        },
        text_config=_llama(), image_token_id=IMAGE, video_token_id=VIDEO,
        image_token_index=IMAGE, video_token_index=VIDEO,
        image_grid_pinpoints=[[56, 56]],
    )  # fmt: skip


#: family -> its configuration
CONFIGS: dict[str, Callable[[], Any]] = {
    "qwen3-vl": _qwen3_vl,
    "qwen3-vl-moe": _qwen3_vl_moe,
    "qwen3.5": lambda: transformers.Qwen3_5Config(
        text_config=_qwen3_5(), vision_config=QWEN3_VISION, **MARKS
    ),
    "qwen3.5-moe": lambda: transformers.Qwen3_5MoeConfig(
        text_config=_qwen3_5(**EXPERTS, shared_expert_intermediate_size=48),
        vision_config=QWEN3_VISION,
        **MARKS,
    ),
    "internvl": _internvl,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
    "llava-next-video": _llava_next_video,
}


def make_model(name: str) -> transformers.PreTrainedModel:
    """Random weights, large enough that every part of the context matters."""
    config = CONFIGS[name]()
    words = 0.06 if name == "gemma3" else 0.5  # that one multiplies them by eight
    kind = transformers.AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind.from_config(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 or parameter_name.endswith("bias"):
                    parameter.normal_(0.0, words if "embed_tokens" in parameter_name else 0.15)
            model.lm_head.weight[IMAGE:] = 0.0  # no answer has a placeholder
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


SIDE, SMALL = 56, 4  # of the pictures of families without temporal patches, and their tokens
QWEN = ("qwen3-vl", "qwen3-vl-moe", "qwen3.5", "qwen3.5-moe")


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Frames (F, 3, SIDE, SIDE), of which each differs a little from the last."""
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn((3, SIDE, SIDE), generator=generator)]
    for _ in range(count - 1):
        frame = made[-1].clone()
        frame[:, 14:28, 28:42] = torch.randn((3, 14, 14), generator=generator)
        made.append(frame)
    return torch.stack(made)


def frame_tokens(name: str) -> int:
    """Tokens of a frame."""
    return TOKENS if name in QWEN else SMALL


def video_ids(name: str, frames: int) -> list[int]:
    """Ids of a video as the processor of the family writes it."""
    tokens = frame_tokens(name)
    if name == "llava-next-video":
        return [VIDEO] * (frames * tokens)
    kind = VIDEO if name in QWEN else IMAGE
    return [part for k in range(frames) for part in (20 + k, START, *[kind] * tokens, END)]


def image_ids(name: str) -> list[int]:
    """Ids of an image as the processor of the family writes it."""
    tokens = {"llava-next-video": 4 * 4 + 4 * 5}.get(name, frame_tokens(name))
    return [START, *[IMAGE] * tokens, END]


def video_inputs(name: str, videos: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    """Pixels of videos, (frames, seed) each, as the processor hands them over."""
    if not videos:
        return {}
    if name in QWEN:
        rows = torch.cat([video(frames, seed) for frames, seed in videos])
        grids = torch.cat([grid_of(frames) for frames, _ in videos])
        return {"pixel_values_videos": rows, "video_grid_thw": grids}
    parts = [pictures(frames, seed) for frames, seed in videos]
    if name == "llava-next-video":
        return {"pixel_values_videos": torch.stack(parts)}
    pixels = torch.cat(parts)
    return {"pixel_values": pixels[None] if name == "smolvlm" else pixels}


def image_inputs(name: str, seed: int = 50) -> dict[str, torch.Tensor]:
    """Pixels of one image, as the processor hands them over."""
    if name in QWEN:
        return {"pixel_values": video(1, seed), "image_grid_thw": grid_of(1)}
    pixels = pictures(1, seed)
    if name == "llava-next-video":  # the whole picture, and one tile
        sizes = torch.tensor([[SIDE, SIDE]])
        return {"pixel_values": pictures(2, seed)[None], "image_sizes": sizes}
    return {"pixel_values": pixels[None] if name == "smolvlm" else pixels}


def with_ids(name: str, ids: torch.Tensor, **pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that the processor returns, for a prompt without padding or with some."""
    given = {"input_ids": ids, "attention_mask": (ids != PAD).long(), **pixels}
    if name in QWEN and "mm_token_type_ids" in _arguments_of_positions(name):
        given["mm_token_type_ids"] = token_types(ids)
    if name == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).long()
    return given


def _arguments_of_positions(name: str) -> Any:
    kind = {"qwen3-vl": "Qwen3VLModel", "qwen3-vl-moe": "Qwen3VLMoeModel"}.get(name, "Qwen3_5Model")
    return inspect.signature(getattr(transformers, kind).get_rope_index).parameters


def prompt(*parts: int | list[int]) -> torch.Tensor:
    """Ids (1, L) of a turn."""
    flat = [i for part in parts for i in (part if isinstance(part, list) else [part])]
    return torch.tensor([[5, 6, *flat, 7]])


def joined(name: str, *pixels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Pixels of several rows of a batch, of which SmolVLM pads the shorter ones with zeros."""
    made = {}
    for key in dict.fromkeys(key for given in pixels for key in given):
        parts = [given[key] for given in pixels if key in given]
        if name == "smolvlm":
            most = max(part.shape[1] for part in parts)
            parts = [
                torch.cat([p, p.new_zeros(1, most - p.shape[1], *p.shape[2:])], 1) for p in parts
            ]
        made[key] = torch.cat(parts)
    return made


def padded(*rows: torch.Tensor) -> torch.Tensor:
    """Ids (B, L) of prompts (1, l), padded on the left."""
    flat = [row[0] for row in rows]
    return torch.nn.utils.rnn.pad_sequence(
        flat, batch_first=True, padding_value=PAD, padding_side="left"
    )


def features_by_hand(name: str, model: Any, frames: int, seed: int) -> list[torch.Tensor]:
    """(F, N, D) tokens of a video by the stock model's own functions, and those of deepstack."""
    given = video_inputs(name, [(frames, seed)])
    if name in (*QWEN, "llava-next-video"):
        made = model.model.get_video_features(*given.values())
    else:
        made = model.model.get_image_features(*given.values())
    deep = list(getattr(made, "deepstack_features", None) or ())
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], list):
        made, deep = made
    made = getattr(made, "pooler_output", made)
    parts = [torch.cat(list(p)) if isinstance(p, (list, tuple)) else p for p in (made, *deep)]
    return [part.reshape(frames, frame_tokens(name), -1) for part in parts]


def model_names() -> list[str]:
    """The families that the installed release has."""
    there = dict.fromkeys(("qwen3.5", "qwen3.5-moe"), "Qwen3_5Config")
    return [name for name in CONFIGS if hasattr(transformers, there.get(name, "Qwen3VLConfig"))]
