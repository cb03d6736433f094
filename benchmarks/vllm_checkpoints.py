# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of small Qwen2.5-VL and Qwen3-VL with random weights, as vLLM reads them.

Real classes of transformers save them, with their processors; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

NAMES = ("qwen2.5-vl", "qwen3-vl")
#: side of a frame in pixels, so that both towers see 8 x 8 patches
SIDE = {"qwen2.5-vl": 112, "qwen3-vl": 128}
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


def make_checkpoint(name: str, folder: Path, **vision: object) -> Path:
    """Write a checkpoint into a folder, and return that; ``vision`` are settings of its tower."""
    config = _config(name, vision)
    kind = getattr(transformers, config.architectures[0])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 or parameter_name.endswith("bias"):
                    parameter.normal_(0.0, 0.5 if "embed_tokens" in parameter_name else 0.15)
            model.lm_head.weight[256:] = 0.0  # no answer ends, or has a placeholder
    model.save_pretrained(folder)
    _processor(name).save_pretrained(folder)
    return folder


def _config(name: str, settings: dict[str, object]) -> transformers.PretrainedConfig:
    rope = {"rope_type": "default", "type": "mrope", "mrope_section": [8, 4, 4],
            "rope_theta": 1e4, "mrope_interleaved": name == "qwen3-vl"}  # fmt: skip
    text = {
        "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "vocab_size": 256 + len(SPECIAL), "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "rope_scaling": rope, "rope_parameters": rope,
        "bos_token_id": None, "eos_token_id": IDS["<|im_end|>"],
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 128, "intermediate_size": 160, "out_hidden_size": 128,
        "num_heads": 4,
    }  # fmt: skip
    ids = {
        "image_token_id": IDS["<|image_pad|>"], "video_token_id": IDS["<|video_pad|>"],
        "vision_start_token_id": IDS["<|vision_start|>"],
        "vision_end_token_id": IDS["<|vision_end|>"], "tie_word_embeddings": False,
    }  # fmt: skip
    if name == "qwen3-vl":
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [1]}
        kind, model = transformers.Qwen3VLConfig, "Qwen3VLForConditionalGeneration"
    else:
        vision |= {"window_size": 56, "fullatt_block_indexes": [2], "tokens_per_second": 2}
        kind, model = transformers.Qwen2_5_VLConfig, "Qwen2_5_VLForConditionalGeneration"
    vision |= settings
    return kind(text_config=text, vision_config=vision, architectures=[model], **ids)


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
    side = SIDE[name] ** 2
    size = {"shortest_edge": side // 4, "longest_edge": side * 64}
    if name == "qwen3-vl":
        patch = {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        videos, kind = transformers.Qwen3VLVideoProcessor, transformers.Qwen3VLProcessor
        video_size = {"shortest_edge": side, "longest_edge": side * 64}
    else:
        patch = {"patch_size": 14}
        videos, kind = transformers.Qwen2VLVideoProcessor, transformers.Qwen2_5_VLProcessor
        video_size = size
    return kind(
        image_processor=transformers.Qwen2VLImageProcessor(size=size, **patch),
        video_processor=videos(size=video_size, **patch),
        tokenizer=tokenizer,
        chat_template=CHAT,
    )
