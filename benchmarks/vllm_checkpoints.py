# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of small Qwen-VL and LLaVA-OneVision with random weights, as vLLM reads them.

Real classes of transformers save them, with their processors; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

#: side of a frame in pixels by name, so that every tower sees 8 x 8 patches
SIDE = {"qwen2.5-vl": 112, "qwen3-vl": 128, "qwen3-vl-moe": 128, "llava-onevision": 112}
NAMES = tuple(SIDE)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
IDS = {text: 256 + number for number, text in enumerate(SPECIAL)}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_checkpoint(name: str, folder: Path, spread: float = 0.15, **vision: object) -> Path:
    """Write a checkpoint into a folder, and return that.

    ``spread`` is the standard deviation of its weights, ``vision`` are settings of its tower.
    """
    config = _config(name, vision)
    kind = getattr(transformers, config.architectures[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 or parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.5 if "embed_tokens" in parameter_name else spread)
            model.lm_head.weight[256:] = 0.0  # no answer ends, or has a placeholder
    model.save_pretrained(folder)
    _publish(name, folder / "model.safetensors")
    _processor(name).save_pretrained(folder)
    return folder


def _publish(name: str, path: Path) -> None:
    """Write weights as published checkpoints have them, and vLLM reads."""
    weights = load_file(path)
    if name == "llava-onevision":
        old, new = "vision_tower.", "vision_tower.vision_model."
        weights = {key.replace(old, new): weight for key, weight in weights.items()}
    for key in [key for key in weights if ".experts." in key]:
        weights[key] = weights[key].transpose(1, 2).contiguous()
    save_file(weights, path)


def _config(name: str, settings: dict[str, object]) -> transformers.PretrainedConfig:
    text = {
        "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 256 + len(SPECIAL), "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": IDS["<|im_end|>"],
    }  # fmt: skip
    vision = {"hidden_size": 128, "intermediate_size": 160} | settings
    if name == "llava-onevision":
        return _llava_config(text, vision)
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [8, 4, 4],
            "rope_theta": 1e4, "mrope_interleaved": name.startswith("qwen3-vl")}  # fmt: skip
    text |= {"head_dim": 32, "rope_scaling": rope, "rope_parameters": rope}
    vision = {"depth": 4, "out_hidden_size": 128, "num_heads": 4} | vision
    ids = {
        "image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"], "tie_word_embeddings": False,
    }  # fmt: skip
    if name == "qwen2.5-vl":
        vision = {"window_size": 56, "fullatt_block_indexes": [2], "tokens_per_second": 2} | vision
        kind, model = transformers.Qwen2_5_VLConfig, "Qwen2_5_VLForConditionalGeneration"
    else:
        vision = {"num_position_embeddings": 64, "deepstack_visual_indexes": [1]} | vision
        kind, model = transformers.Qwen3VLConfig, "Qwen3VLForConditionalGeneration"
    if name == "qwen3-vl-moe":
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96,
                 "norm_topk_prob": True}  # fmt: skip
        kind, model = transformers.Qwen3VLMoeConfig, "Qwen3VLMoeForConditionalGeneration"
    return kind(text_config=text, vision_config=vision, architectures=[model], **ids)


def _llava_config(
    text: dict[str, object], vision: dict[str, object]
) -> transformers.PretrainedConfig:
    side = SIDE["llava-onevision"]
    tower = {"num_hidden_layers": 4, "num_attention_heads": 4, "image_size": side, "patch_size": 14}
    return transformers.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2"} | text,
        vision_config={"model_type": "siglip_vision_model"} | tower | vision,
        image_token_index=IDS["<|image_pad|>"],
        video_token_index=IDS["<|video_pad|>"],
        image_grid_pinpoints=_pinpoints(side),
        architectures=["LlavaOnevisionForConditionalGeneration"],
    )


def _pinpoints(side: int) -> list[list[int]]:
    """Sizes of pictures that are cut into views of their own: one, or two side by side."""
    return [[side, side], [side, 2 * side]]


def _processor(name: str) -> transformers.ProcessorMixin:
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(vocabulary | IDS, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|endoftext|>", eos_token="<|im_end|>",
        model_max_length=4096,
    )  # fmt: skip
    parts: dict[str, object] = {"tokenizer": tokenizer, "chat_template": CHAT}
    if name == "llava-onevision":
        return _llava_processor(parts)
    side = SIDE[name] ** 2
    size = {"shortest_edge": side // 4, "longest_edge": side * 64}
    if name == "qwen2.5-vl":
        patch = {"patch_size": 14}
        videos, kind = transformers.Qwen2VLVideoProcessor, transformers.Qwen2_5_VLProcessor
        video_size = size
    else:
        patch = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        videos, kind = transformers.Qwen3VLVideoProcessor, transformers.Qwen3VLProcessor
        video_size = {"shortest_edge": side, "longest_edge": side * 64}
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **patch),
        video_processor=videos(size=video_size, **patch),
        **parts,
    )


def _llava_processor(parts: dict[str, object]) -> transformers.ProcessorMixin:
    side = SIDE["llava-onevision"]
    size = {"height": side, "width": side}
    return transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            size=size, image_grid_pinpoints=_pinpoints(side)
        ),
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=64,
        vision_feature_select_strategy="full",
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        **parts,
    )
