# SPDX-License-Identifier: Apache-2.0
"""How each argument in docs/generate.md is tried: by name, what a call is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiny_qwen_vl
import torch
import transformers
from case_models import (
    FAMILIES,
    FRAMES,
    GREEDY,
    NEW,
    SAMPLE,
    WHOLE,
    Case,
    Collects,
    ForcesThird,
    StopsAfter,
    allowed,
    assistant,
    configured,
    embeds,
    padded,
    picture,
    setting,
    static,
)
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteriaList,
    TextStreamer,
)

BEAMS = {"max_new_tokens": NEW, "do_sample": False, "num_beams": 3}
#: argument -> calls that are made with it
GENERATE: dict[str, list[Callable[[Case], dict[str, Any]]]] = {
    # of generate itself
    "inputs": [lambda c: {**GREEDY, "inputs": c.ids, "input_ids": None}],
    "generation_config": [
        lambda c: configured(c, max_new_tokens=4),
        lambda c: configured(c, max_length=c.length + 4),
        lambda c: configured(c, max_length=c.length + 4, min_length=c.length + 2, eos_token_id=7),
        lambda c: {**configured(c, max_length=c.length + 4), "max_new_tokens": 3},
    ],
    "logits_processor": [
        lambda c: {**GREEDY, "logits_processor": [ForcesThird(c.ids)]},
        lambda c: {**BEAMS, "logits_processor": LogitsProcessorList([ForcesThird(c.ids)])},
        lambda c: {
            **GREEDY, "eos_token_id": 7,
            "logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(c.length + 3, 7)]),
        },
    ],
    "stopping_criteria": [
        lambda c: {**GREEDY, "stopping_criteria": StoppingCriteriaList([StopsAfter(c.length)])},
        lambda c: {
            "do_sample": False,
            "stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(c.length + 3)]),
        },
    ],
    "prefix_allowed_tokens_fn": [
        lambda c: {**GREEDY, "prefix_allowed_tokens_fn": allowed(c)},
        lambda c: {**BEAMS, "prefix_allowed_tokens_fn": allowed(c)},
    ],
    "synced_gpus": [setting("synced_gpus", False)],
    "assistant_model": [lambda c: {**GREEDY, "assistant_model": assistant(c)}],
    "streamer": [
        lambda c: {**GREEDY, "streamer": Collects()},
        lambda c: {**GREEDY, "streamer": TextStreamer(c.tokenizer, skip_prompt=True)},
    ],
    "negative_prompt_ids": [
        lambda c: {**GREEDY, "guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6]])}
    ],
    "negative_prompt_attention_mask": [
        lambda c: {
            **GREEDY, "guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[5, 6, 9]]),
            "negative_prompt_attention_mask": torch.tensor([[1, 1, 1]]),
        }
    ],
    "use_model_defaults": [lambda c: {**configured(c, max_length=c.length + 4),
                                      "use_model_defaults": False}],
    "custom_generate": [
        lambda c: {**GREEDY, "custom_generate": lambda model, input_ids, **_: input_ids}
    ],
    "trust_remote_code": [setting("trust_remote_code", False)],
    "tokenizer": [lambda c: {**GREEDY, "stop_strings": ["a", "b", "e"], "tokenizer": c.tokenizer}],
    "assistant_tokenizer": [
        lambda c: {**GREEDY, "assistant_model": assistant(c), "tokenizer": c.tokenizer,
                   "assistant_tokenizer": tiny_qwen_vl.make_tokenizer(tiny_qwen_vl.CHAT)}
    ],
    # lengths
    "max_new_tokens": [setting("max_new_tokens", 3)],
    "max_length": [
        lambda c: {"do_sample": False, "max_length": c.length + 4},
        lambda c: {"do_sample": False, "max_length": c.length + 4, "min_length": 2},
    ],
    "min_length": [
        lambda c: {**GREEDY, "min_length": c.length + 3, "eos_token_id": list(range(60))},
        lambda c: {**GREEDY, "min_length": 3, "eos_token_id": list(range(60))},
    ],
    "min_new_tokens": [
        lambda c: {**GREEDY, "min_new_tokens": 3, "eos_token_id": list(range(60))},
    ],
    "max_time": [setting("max_time", 3600.0)],
    "early_stopping": [setting("early_stopping", True, BEAMS)],
    "stop_strings": [lambda c: {**GREEDY, "stop_strings": "z", "tokenizer": c.tokenizer}],
    # the way
    "do_sample": [setting("do_sample", True)],
    "num_beams": [setting("num_beams", 3), setting("num_beams", 3, SAMPLE)],
    "num_return_sequences": [
        setting("num_return_sequences", 2, SAMPLE), setting("num_return_sequences", 2, BEAMS),
    ],
    "num_beam_groups": [setting("num_beam_groups", 2, GREEDY, num_beams=4, diversity_penalty=1.0)],
    "diversity_penalty": [setting("diversity_penalty", 1.0, GREEDY, num_beams=4,
                                  num_beam_groups=2)],
    "penalty_alpha": [setting("penalty_alpha", 0.6, GREEDY, top_k=4)],
    "dola_layers": [setting("dola_layers", "low")],
    "constraints": [setting("constraints", [object()], BEAMS)],
    "force_words_ids": [setting("force_words_ids", [[9]], BEAMS)],
    "use_cache": [setting("use_cache", False), setting("use_cache", False, BEAMS)],
    "low_memory": [setting("low_memory", False)],
    # logits
    "temperature": [setting("temperature", 0.7, SAMPLE)],
    "top_k": [setting("top_k", 5, SAMPLE)],
    "top_p": [setting("top_p", 0.8, SAMPLE)],
    "top_h": [setting("top_h", 0.5, SAMPLE)],
    "min_p": [setting("min_p", 0.1, SAMPLE)],
    "typical_p": [setting("typical_p", 0.8, SAMPLE)],
    "epsilon_cutoff": [setting("epsilon_cutoff", 0.01, SAMPLE)],
    "eta_cutoff": [setting("eta_cutoff", 0.01, SAMPLE)],
    "repetition_penalty": [setting("repetition_penalty", 1.3)],
    "encoder_repetition_penalty": [setting("encoder_repetition_penalty", 1.5)],
    "length_penalty": [setting("length_penalty", 0.5, BEAMS)],
    "no_repeat_ngram_size": [setting("no_repeat_ngram_size", 2)],
    "encoder_no_repeat_ngram_size": [setting("encoder_no_repeat_ngram_size", 2)],
    "bad_words_ids": [lambda c: {**GREEDY, "bad_words_ids": [[t] for t in range(30, 90)]}],
    "renormalize_logits": [setting("renormalize_logits", True)],
    "forced_bos_token_id": [setting("forced_bos_token_id", 9)],
    "forced_eos_token_id": [setting("forced_eos_token_id", 9)],
    "remove_invalid_values": [setting("remove_invalid_values", True)],
    "exponential_decay_length_penalty": [
        setting("exponential_decay_length_penalty", (1, 1.6), GREEDY, eos_token_id=7)
    ],
    "suppress_tokens": [setting("suppress_tokens", list(range(100)))],
    "begin_suppress_tokens": [setting("begin_suppress_tokens", list(range(150)))],
    "sequence_bias": [setting("sequence_bias", {(9,): 10.0})],
    "guidance_scale": [setting("guidance_scale", 1.5)],
    "watermarking_config": [
        lambda c: {**GREEDY, "watermarking_config": transformers.WatermarkingConfig()}
    ],
    "token_healing": [lambda c: {**GREEDY, "token_healing": True, "tokenizer": c.tokenizer}],
    # what comes back
    "return_dict_in_generate": [setting("return_dict_in_generate", True),
                                setting("return_dict_in_generate", True, BEAMS)],
    "output_scores": [setting("output_scores", True, GREEDY, **WHOLE),
                      setting("output_scores", True, BEAMS, **WHOLE)],
    "output_logits": [setting("output_logits", True, GREEDY, **WHOLE)],
    "output_attentions": [setting("output_attentions", True, GREEDY, **WHOLE)],
    "output_hidden_states": [setting("output_hidden_states", True, GREEDY, **WHOLE)],
    "return_legacy_cache": [setting("return_legacy_cache", False, GREEDY, **WHOLE)],
    # tokens
    "pad_token_id": [setting("pad_token_id", 3)],
    "bos_token_id": [setting("bos_token_id", 3)],
    "eos_token_id": [setting("eos_token_id", list(range(0, 200, 3)))],
    "decoder_start_token_id": [setting("decoder_start_token_id", 3)],
    # cache and prefill
    "cache_implementation": [
        setting("cache_implementation", "static"), setting("cache_implementation", "dynamic"),
        setting("cache_implementation", "offloaded_static") if torch.cuda.is_available()
        else setting("cache_implementation", "static", BEAMS),
    ],
    "cache_config": [setting("cache_config", None)],
    "max_cache_len": [lambda c: {**GREEDY, "cache_implementation": "static",
                                 "max_cache_len": c.length + 50}],
    "prefill_chunk_size": [setting("prefill_chunk_size", 7), setting("prefill_chunk_size", 1)],
    "compile_config": [setting("compile_config", None)],
    "disable_compile": [setting("disable_compile", True)],
    "continuous_batching_config": [setting("continuous_batching_config", None)],
    # assisted
    "is_assistant": [setting("is_assistant", False)],
    "num_assistant_tokens": [lambda c: {**GREEDY, "assistant_model": assistant(c),
                                        "num_assistant_tokens": 3}],
    "num_assistant_tokens_schedule": [
        lambda c: {**GREEDY, "assistant_model": assistant(c),
                   "num_assistant_tokens_schedule": "constant"}
    ],
    "assistant_confidence_threshold": [
        lambda c: {**GREEDY, "assistant_model": assistant(c), "assistant_confidence_threshold": 0.1}
    ],
    "assistant_ensemble_weight": [
        lambda c: {**GREEDY, "assistant_model": assistant(c), "assistant_ensemble_weight": None}
    ],
    "assistant_early_exit": [setting("assistant_early_exit", 1)],
    "assistant_lookbehind": [setting("assistant_lookbehind", 5)],
    "target_lookbehind": [setting("target_lookbehind", 5)],
    "prompt_lookup_num_tokens": [setting("prompt_lookup_num_tokens", 2)],
    "max_matching_ngram_size": [setting("max_matching_ngram_size", 2, GREEDY,
                                        prompt_lookup_num_tokens=2)],
    "speculation_type": [setting("speculation_type", None)],
    "use_mtp": [setting("use_mtp", False)],
    "transformers_version": [setting("transformers_version", "5.0.0")],
}  # fmt: skip


LLAVA, QWEN = FAMILIES[:1], FAMILIES[1:]
#: argument -> families that have it, if not all
ONLY = {
    **dict.fromkeys(
        (
            "image_sizes",
            "image_sizes_videos",
            "vision_feature_layer",
            "vision_feature_select_strategy",
            "vision_aspect_ratio",
            "batch_num_images",
        ),
        LLAVA,
    ),
    **dict.fromkeys(("image_grid_thw", "video_grid_thw", "mm_token_type_ids", "rope_deltas"), QWEN),
    "second_per_grid_ts": QWEN[1:],
}

#: argument of the model itself -> calls of forward that are made with it
FORWARD: dict[str, list[Callable[[Case], dict[str, Any]]]] = {
    "input_ids": [lambda c: {}],
    "attention_mask": [lambda c: {"attention_mask": None}, padded],
    "pixel_values_videos": [lambda c: {"pixel_values_videos": c.inputs["pixel_values_videos"]}],
    "pixel_values": [picture],
    "image_sizes": [picture],
    "image_sizes_videos": [lambda c: {"image_sizes_videos": torch.full((1, FRAMES, 2), 112)}],
    "batch_num_images": [lambda c: {**picture(c), "batch_num_images": torch.tensor([1])}],
    "vision_aspect_ratio": [lambda c: {**picture(c), "vision_aspect_ratio": "anyres_max_9"}],
    "vision_feature_layer": [lambda c: {"vision_feature_layer": -2}],
    "vision_feature_select_strategy": [lambda c: {"vision_feature_select_strategy": "default"}],
    "image_grid_thw": [picture],
    "video_grid_thw": [lambda c: {"video_grid_thw": c.inputs["video_grid_thw"].clone()}],
    "mm_token_type_ids": [lambda c: {"mm_token_type_ids": tiny_qwen_vl.token_types(c.ids)}],
    "second_per_grid_ts": [lambda c: {"second_per_grid_ts": torch.tensor([3.0])}],
    "labels": [lambda c: {"labels": c.ids}],
    "use_cache": [lambda c: {"use_cache": True}, lambda c: {"use_cache": False}],
    "cache": [lambda c: {"cache": DynamicCache(), "use_cache": True}],
    "past_key_values": [lambda c: {"past_key_values": DynamicCache(), "use_cache": True}],
    "logits_to_keep": [lambda c: {"logits_to_keep": 2}],
    "output_attentions": [lambda c: {"output_attentions": True}],
    "output_hidden_states": [lambda c: {"output_hidden_states": True}],
    "return_dict": [lambda c: {"return_dict": False}],
    "cache_position": [lambda c: {"cache_position": torch.arange(c.length)}],
    "num_items_in_batch": [lambda c: {"labels": c.ids, "num_items_in_batch": torch.tensor(7)}],
    "is_causal": [lambda c: {"is_causal": False}],
    "inputs_embeds": [lambda c: {"inputs_embeds": embeds(c), "input_ids": None}],
    "position_ids": [lambda c: {"position_ids": torch.arange(c.length)[None]}],
    "rope_deltas": [lambda c: {"rope_deltas": torch.zeros(1, 1)}],
    "mm_encoder_outputs": [lambda c: {"mm_encoder_outputs": {"video": embeds(c)},
                                      "pixel_values_videos": None}],
    "cu_seq_lens_q": [lambda c: {"cu_seq_lens_q": torch.tensor([0, 5])}],
    "cu_seq_lens_k": [lambda c: {"cu_seq_lens_k": torch.tensor([0, 5])}],
    "max_length_q": [lambda c: {"max_length_q": 5}],
    "max_length_k": [lambda c: {"max_length_k": 5}],
    "seq_idx": [lambda c: {"seq_idx": torch.zeros(1, c.length)}],
}  # fmt: skip

#: the same in `generate`
GENERATE |= {
    name: [lambda c, make=make: {**GREEDY, **make(c)} for make in makes]
    for name, makes in FORWARD.items()
    if name not in ("use_cache", "return_dict", "output_attentions", "output_hidden_states",
                    "num_items_in_batch", "logits_to_keep")
}  # fmt: skip
GENERATE["cache"].append(lambda c: {**GREEDY, "cache": static(c)})
GENERATE["past_key_values"].append(lambda c: {**GREEDY, "past_key_values": static(c)})
GENERATE["encoder_outputs"] = [lambda c: {**GREEDY, "encoder_outputs": (embeds(c),)}]
GENERATE["decoder_input_ids"] = [lambda c: {**GREEDY, "decoder_input_ids": c.ids}]
GENERATE["decoder_inputs_embeds"] = [lambda c: {**GREEDY, "decoder_inputs_embeds": embeds(c)}]
GENERATE["decoder_attention_mask"] = [lambda c: {**GREEDY, "decoder_attention_mask": c.ids}]
