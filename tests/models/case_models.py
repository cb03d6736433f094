# SPDX-License-Identifier: Apache-2.0
"""Small models, what their processors make, and what is handed to ``generate``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny_llava
import tiny_qwen_vl
import torch
import transformers
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    StaticCache,
    StoppingCriteria,
)

from stc_video.cache_argument import CACHE_NAMES

NEW, FRAMES = 6, 2
PAGE = Path(__file__).parents[2] / "docs/generate.md"
FAMILIES = ("llava-onevision", *tiny_qwen_vl.NAMES)


@dataclass
class Case:
    """A small model and what its processor makes of a question about a video."""

    family: str
    model: Any
    inputs: dict[str, Any]
    tokenizer: Any

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def ids(self) -> Tensor:
        return self.inputs["input_ids"]


def make_case(family: str) -> Case:
    if family == "llava-onevision":
        model = tiny_llava.make_model()
        model.generation_config.eos_token_id = None
        with torch.no_grad():
            model.lm_head.weight[256:] = 0.0
        ids = tiny_llava.prompt_ids(FRAMES, "why?")
        pixels = tiny_llava.video(FRAMES)[None]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return Case(
            family, model, inputs | {"pixel_values_videos": pixels}, tiny_llava.make_tokenizer()
        )
    model = tiny_qwen_vl.make_model(family)
    ids, grid = tiny_qwen_vl.turn([9, 10, 11], FRAMES), tiny_qwen_vl.grid_of(FRAMES)
    inputs = tiny_qwen_vl.stock_inputs(ids, tiny_qwen_vl.video(FRAMES), grid)
    return Case(family, model, inputs, tiny_qwen_vl.make_tokenizer(tiny_qwen_vl.CHAT))


# -- the table -------------------------------------------------------------------------------------


def rows(call: str) -> dict[tuple[str, str], str]:
    """(family, argument) -> outcome, of the tables below the heading of a call."""
    parts = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    text = next(part for part in parts if part.startswith(f"`{call}`"))
    found = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|", text, flags=re.M)
    made = {}
    for name, llava, qwen in found:
        for family in FAMILIES:
            made[family, name] = llava if family == FAMILIES[0] else qwen
    return {place: outcome for place, outcome in made.items() if outcome != "-"}


def taken(call: str) -> set[str]:
    """Every argument that the installed release has for a call."""
    if call == "generate":
        own = set(inspect.signature(transformers.GenerationMixin.generate).parameters)
        settings = {k for k in GenerationConfig().to_dict() if not k.startswith("_")}
        more = {"trust_remote_code", "tokenizer", "assistant_tokenizer", *CACHE_NAMES}
        model = taken("forward") - {"num_items_in_batch", "logits_to_keep"}
        return (own | settings | more | model) - {"self", "kwargs", "return_dict"}
    from transformers.utils import TransformersKwargs

    names = set(TransformersKwargs.__annotations__) | {"return_dict", *CACHE_NAMES}
    for kind in ("LlavaOnevision", "Qwen2VL", "Qwen2_5_VL"):
        model: Any = getattr(transformers, f"{kind}ForConditionalGeneration")
        names |= set(inspect.signature(model.forward).parameters)
    return names - {"self", "kwargs", "output_router_logits"}


# -- what is handed over ---------------------------------------------------------------------------

GREEDY = {"max_new_tokens": NEW, "do_sample": False}
SAMPLE = {"max_new_tokens": NEW, "do_sample": True}
WHOLE = {"return_dict_in_generate": True}


class StopsAfter(StoppingCriteria):
    """Counts from the caller's prompt."""

    def __init__(self, length: int) -> None:
        self.length, self.seen = length, 0

    def __call__(self, input_ids, scores, **kwargs):
        self.seen = input_ids.shape[1]
        done = input_ids[:, self.length :].shape[1] >= 4
        return torch.full((len(input_ids),), done, device=input_ids.device)


class ForcesThird(LogitsProcessor):
    """Counts from the caller's prompt, and looks at its beginning."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        assert torch.equal(input_ids[:1, : self.ids.shape[1]], self.ids)
        if input_ids.shape[1] - self.ids.shape[1] == 2:
            scores = torch.full_like(scores, -1e9)
            scores[:, 77] = 0
        return scores


class Collects:
    """A streamer."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.seen.append(value.tolist())

    def end(self) -> None:
        self.seen.append("end")


def assistant(case: Case) -> Any:
    """A smaller model of text with the same vocabulary."""
    size = case.model.config.get_text_config().vocab_size
    config = transformers.Qwen2Config(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.Qwen2ForCausalLM(config).eval()
    made.generation_config.eos_token_id = None
    return made


def setting(name: str, value: Any, base: dict[str, Any] = GREEDY, **more: Any) -> Callable:
    return lambda case: {**base, **more, name: value}


def configured(case: Case, **settings: Any) -> dict[str, Any]:
    """The same by a configuration."""
    pad = case.model.generation_config.pad_token_id
    make: Any = GenerationConfig
    return {"generation_config": make(pad_token_id=pad, do_sample=False, **settings)}


def allowed(case: Case) -> Callable[[int, Tensor], list[int]]:
    def only(batch: int, ids: Tensor) -> list[int]:
        return [40 + len(ids) - case.length, 50]

    return only


# -- what both calls take --------------------------------------------------------------------------


def is_llava(case: Case) -> bool:
    return case.family == "llava-onevision"


def padded(case: Case) -> dict[str, Any]:
    """Two rows of different lengths, each with a video."""
    more = 3
    pad = case.model.generation_config.pad_token_id
    short = torch.nn.functional.pad(case.ids, (more, 0), value=pad)
    long = torch.cat([case.ids[:, :1].expand(-1, more), case.ids], dim=1)
    ids = torch.cat([short, long])
    made = {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) >= more).long().expand(2, -1)
        | torch.tensor([[0], [1]]),
    }
    for name in ("pixel_values_videos", "video_grid_thw"):
        if name in case.inputs:
            made[name] = torch.cat([case.inputs[name]] * 2)
    if "mm_token_type_ids" in case.inputs:
        made["mm_token_type_ids"] = tiny_qwen_vl.token_types(ids)
    return made


def picture(case: Case) -> dict[str, Any]:
    """An image in front of the video."""
    token = case.model.config.image_token_id
    if is_llava(case):
        side = 2 * tiny_llava.GRID
        count, pixels = side * side + side * (side + 1), tiny_llava.video(2)[None]
        more = {"pixel_values": pixels, "image_sizes": torch.tensor([[112, 112]])}
        image = [token] * count
    else:
        more = {"pixel_values": tiny_qwen_vl.video(1, 5), "image_grid_thw": tiny_qwen_vl.grid_of(1)}
        image = [tiny_qwen_vl.START, *[token] * tiny_qwen_vl.TOKENS, tiny_qwen_vl.END]
    ids = torch.cat([torch.tensor([[1, *image, 2]]), case.ids], dim=1)
    made = {**more, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in case.inputs:
        made["mm_token_type_ids"] = tiny_qwen_vl.token_types(ids)
    return made


def embeds(case: Case) -> Tensor:
    with torch.no_grad():
        return case.model.get_input_embeddings()(case.ids)


def static(case: Case) -> Any:
    """A cache of a size that was fixed by the caller."""
    config = case.model.config.get_text_config()
    return StaticCache(config=config, max_batch_size=1, max_cache_len=case.length + NEW + 20)
