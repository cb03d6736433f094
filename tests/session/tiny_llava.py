# SPDX-License-Identifier: Apache-2.0
"""A small LLaVA-OneVision of the real classes, its tokenizer, and videos for it."""

from __future__ import annotations

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

SIZE, GRID, TOKENS = 112, 4, 16
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}<video>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")


def make_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte, and the special ones of LLaVA-OneVision."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(list(SPECIAL))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def make_model(layers: int = 3, **text: object) -> transformers.PreTrainedModel:
    """Random weights, large enough that every part of the context matters."""
    tokenizer = make_tokenizer()
    config = transformers.LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": SIZE, "patch_size": 14,
            "vision_use_head": False,
        },
        text_config={
            "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 32768,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id, **text,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=[[SIZE, SIZE]],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlavaOnevisionForConditionalGeneration(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() > 1 or name.endswith(("bias", "newline")):
                    parameter.normal_(0.0, 0.12 if "embed_tokens" not in name else 0.5)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def video(frames: int, seed: int = 0) -> Tensor:
    """Preprocessed frames, (F, 3, SIZE, SIZE), of which each differs a little from the last."""
    generator = torch.Generator().manual_seed(seed)
    shape = (3, SIZE, SIZE)
    first = torch.rand(shape, generator=generator)
    made = [first]
    for _ in range(frames - 1):
        frame = made[-1].clone()
        row, column = torch.randint(0, SIZE - 40, (2,), generator=generator).tolist()
        frame[:, row : row + 40, column : column + 40] = torch.rand(
            (3, 40, 40), generator=generator
        )
        made.append(frame)
    return torch.stack(made) * 2 - 1


def prompt_ids(frames: int, question: str, videos: int = 1) -> Tensor:
    """What the processor makes of a question about videos, (1, L)."""
    tokenizer = make_tokenizer()
    content = [{"type": "video"}] * videos + [{"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace("<video>", "<video>" * (frames * TOKENS + 1))
    return tokenizer(text, return_tensors="pt").input_ids
