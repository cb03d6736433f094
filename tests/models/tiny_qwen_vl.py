# SPDX-License-Identifier: Apache-2.0
"""Small Qwen2-VL and Qwen2.5-VL of the real classes, and conversations with them."""

from __future__ import annotations

import inspect

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor

VOCABULARY, PAD = 200, 199
IMAGE, VIDEO, START, END = 190, 191, 192, 193
GRID = (4, 6)  # a frame of 24 rows, 6 tokens
TOKENS = 6
PIXELS = 3 * 2 * 14 * 14
NAMES = ["qwen2-vl", "qwen2.5-vl"]
CHAT = (
    "<|im_start|>system\nHi.<|im_end|>\n{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_model(name: str) -> transformers.PreTrainedModel:
    """Random weights, large enough that every part of the context matters."""
    text = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096, "pad_token_id": PAD, "bos_token_id": None,
        "eos_token_id": None, "tie_word_embeddings": False,
        "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    ids = {
        "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
        "vision_end_token_id": END,
    }  # fmt: skip
    if name == "qwen2-vl":
        vision = {"depth": 3, "embed_dim": 32, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2}
        config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **ids)
        kind = transformers.Qwen2VLForConditionalGeneration
    else:
        vision = {
            "depth": 3, "hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64,
            "num_heads": 4, "window_size": 56, "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
        }  # fmt: skip
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
        kind = transformers.Qwen2_5_VLForConditionalGeneration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter.dim() > 1 or parameter_name.endswith("bias"):
                    scale = 0.5 if "embed_tokens" in parameter_name else 0.15
                    parameter.normal_(0.0, scale)
            model.lm_head.weight[IMAGE:] = 0.0  # no answer has a placeholder
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model


def video(frames: int, seed: int = 0, grid: tuple[int, int] = GRID) -> Tensor:
    """Rows (frames * H * W, P) of temporal patches, of which each differs a little."""
    generator = torch.Generator().manual_seed(seed)
    size = (grid[0] * grid[1], PIXELS)
    made = [torch.randn(size, generator=generator)]
    for _ in range(frames - 1):
        frame = made[-1].clone()
        places = torch.randperm(size[0], generator=generator)[:5]
        frame[places] = torch.randn((5, PIXELS), generator=generator)
        made.append(frame)
    return torch.cat(made)


def turn(text: list[int], frames: int = 0, tokens: int = TOKENS) -> Tensor:
    """Ids (1, L) of a turn as the processor makes them: a video, if any, between its marks."""
    picture = [START, *[VIDEO] * (frames * tokens), END] if frames else []
    return torch.tensor([[5, 6, *picture, *text, 7]])


def grid_of(frames: int, grid: tuple[int, int] = GRID) -> Tensor:
    return torch.tensor([[frames, *grid]])


def token_types(ids: Tensor) -> Tensor:
    return (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


def rope_index(model, ids: Tensor, grids: Tensor, **more: object) -> Tensor:
    """Positions (3, B, L) of a whole conversation by the installed release's rule."""
    rule = model.model.get_rope_index
    arguments = {"input_ids": ids, "video_grid_thw": grids, **more}
    if "mm_token_type_ids" in inspect.signature(rule).parameters:
        arguments["mm_token_type_ids"] = token_types(ids)
    return rule(**arguments)[0]


def stock_inputs(ids: Tensor, pixels: Tensor, grids: Tensor) -> dict[str, Tensor]:
    """What the processor of the installed release makes."""
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values_videos": pixels,
        "video_grid_thw": grids,
    }
    rule = transformers.Qwen2VLModel.get_rope_index
    if "mm_token_type_ids" in inspect.signature(rule).parameters:
        inputs["mm_token_type_ids"] = token_types(ids)
    return inputs


def features_by_hand(model, pixels: Tensor, grids: Tensor) -> list[Tensor]:
    """(T, N, D) tokens of each video, by the stock model's own function."""
    if not len(grids):
        return []
    made = model.model.get_video_features(pixels, grids)
    made = getattr(made, "pooler_output", made)
    return [part.view(int(g[0]), -1, part.shape[-1]) for part, g in zip(made, grids, strict=True)]


QWEN_MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")


def make_tokenizer(
    chat_template: str, marks: tuple[str, ...] = QWEN_MARKS, *, like_gemma: bool = False
) -> transformers.PreTrainedTokenizerFast:
    """One token per byte of text, and the special ones: those of pictures from IMAGE on.

    Like Gemma's it has a token for newlines in a row, and begins texts with one of its own.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    needed = [chr(code) for code in range(33, 127)] + ["\u010a", "\u0120"]  # newline, space
    letters = needed + sorted(set(alphabet) - set(needed))[: IMAGE - 2 - len(needed)]
    line, merges = "\u010a", []
    if like_gemma:
        letters[-3:] = [line * count for count in (2, 3, 4)]
        merges = [(line, line), (line * 2, line), (line * 2, line * 2)]
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, merges, unk_token=letters[0]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<|im_start|>", "<|im_end|>", *marks])
    assert [raw.token_to_id(mark) for mark in marks] == [*range(IMAGE, IMAGE + len(marks))]
    ends = {"eos_token": "<|im_end|>"}
    if like_gemma:
        ends["bos_token"] = begin = "<|im_start|>"
        raw.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, raw.token_to_id(begin))]
        )
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **ends)
    made.chat_template = chat_template
    return made


def pictures(count: int) -> list[np.ndarray]:
    """Pictures (120, 160, 3), of which each differs in one place from the one before."""
    generator = np.random.default_rng(0)
    made = [generator.integers(0, 255, (120, 160, 3), dtype=np.uint8)]
    for _ in range(count - 1):
        frame = made[-1].copy()
        row, column = generator.integers(0, 90, 2)
        frame[row : row + 30, column : column + 30] = generator.integers(0, 255, (30, 30, 3))
        made.append(frame)
    return made
