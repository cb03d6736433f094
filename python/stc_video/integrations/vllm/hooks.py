# SPDX-License-Identifier: Apache-2.0
"""What the plugin needs of vLLM: names and parameters, read off its source without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

#: releases that the tests have run with: from, and below
FROM, BELOW = (0, 32), (0, 33)
#: architecture that a checkpoint names -> our class in ``models``
ARCHITECTURES = {
    "Qwen2_5_VLForConditionalGeneration": "StreamingQwen2_5VL",
    "Qwen3VLForConditionalGeneration": "StreamingQwen3VL",
    "Qwen3VLMoeForConditionalGeneration": "StreamingQwen3VLMoe",
    "LlavaOnevisionForConditionalGeneration": "StreamingLlavaOnevision",
}

_MODELS = "model_executor/models"
_ROTARY = ("cu_seqlens", "rotary_pos_emb_cos", "rotary_pos_emb_sin")
#: file -> name -> parameters that it must have, in any order; a class is there or is not
HOOKS: dict[str, dict[str, tuple[str, ...]]] = {
    f"{_MODELS}/qwen2_5_vl.py": {
        "Qwen2_5_VLForConditionalGeneration.embed_multimodal": ("kwargs",),
        "Qwen2_5_VLForConditionalGeneration.load_weights": ("weights",),
        "Qwen2_5_VLMultiModalProcessor._get_mm_fields_config": (
            "hf_inputs",
            "hf_processor_mm_kwargs",
        ),
        "Qwen2_5_VLProcessingInfo": (),
        "Qwen2_5_VLDummyInputsBuilder": (),
        "Qwen2_5_VisionTransformer.forward": ("x", "grid_thw", "encoder_metadata"),
        "Qwen2_5_VisionBlock.forward": ("x", *_ROTARY),
        "Qwen2_5_VisionPatchMerger.forward": ("x",),
    },
    f"{_MODELS}/qwen3_vl.py": {
        "Qwen3VLForConditionalGeneration.embed_multimodal": ("kwargs",),
        "Qwen3VLForConditionalGeneration.load_weights": ("weights",),
        "Qwen3VLMultiModalProcessor._get_mm_fields_config": (
            "hf_inputs",
            "hf_processor_mm_kwargs",
        ),
        "Qwen3VLMultiModalProcessor._apply_hf_processor_main": ("mm_items", "hf_kwargs"),
        "Qwen3VLMultiModalProcessor._get_mm_hashes": ("inputs",),
        "Qwen3VLProcessingInfo": (),
        "Qwen3VLDummyInputsBuilder": (),
        "Qwen3_VisionTransformer.forward": ("x", "grid_thw", "encoder_metadata"),
        "Qwen3_VisionBlock.forward": ("x", *_ROTARY),
        "Qwen3_VisionPatchMerger.forward": ("x",),
    },
    f"{_MODELS}/qwen3_vl_moe.py": {
        "Qwen3VLMoeForConditionalGeneration": (),
        "Qwen3VLMoeProcessingInfo": (),
    },
    f"{_MODELS}/llava_onevision.py": {
        "LlavaOnevisionForConditionalGeneration.embed_multimodal": ("kwargs",),
        "LlavaOnevisionForConditionalGeneration.load_weights": ("weights",),
        "LlavaOnevisionMultiModalProcessor._get_mm_fields_config": (
            "hf_inputs",
            "hf_processor_mm_kwargs",
        ),
        "LlavaOnevisionMultiModalProcessor._apply_hf_processor_main": ("mm_items", "hf_kwargs"),
        "LlavaOnevisionProcessingInfo": (),
        "LlavaOnevisionDummyInputsBuilder": (),
    },
    f"{_MODELS}/siglip.py": {
        "SiglipVisionModel.forward": ("pixel_values",),
        "SiglipEncoderLayer.forward": ("hidden_states",),
    },
    f"{_MODELS}/registry.py": {"_ModelRegistry.register_model": ("model_arch", "model_cls")},
    "multimodal/registry.py": {
        "MultiModalRegistry.register_processor": ("processor", "info", "dummy_inputs"),
    },
    "multimodal/processing/processor.py": {
        "BaseMultiModalProcessor.apply": ("inputs", "timing_ctx"),
        "BaseMultiModalProcessor._get_mm_hashes": ("inputs",),
        "BaseMultiModalProcessor._apply_hf_processor_main": ("mm_items", "hf_kwargs"),
    },
    "multimodal/hasher.py": {"MultiModalHasher.hash_kwargs": ("algorithm", "kwargs")},
    "multimodal/inputs.py": {"MultiModalFieldConfig.batched": ("modality", "keep_on_cpu")},
    "multimodal/video_prune/evs.py": {
        "compute_retained_tokens_count": ("tokens_per_frame", "num_frames", "q"),
        "compute_retention_mask": ("video_embeds", "video_size_thw", "spatial_merge_size", "q"),
    },
}


def missing_hooks(package: Path) -> list[str]:
    """Say what a copy of vLLM lacks of :data:`HOOKS`; ``package`` is its folder ``vllm``."""
    missing = []
    for name, hooks in HOOKS.items():
        path = package / name
        found = _signatures(path) if path.is_file() else {}
        for hook, parameters in hooks.items():
            if hook not in found:
                missing.append(f"{name}: {hook}")
            elif lacking := set(parameters) - found[hook]:
                missing.append(f"{name}: {hook}({', '.join(sorted(lacking))})")
    return missing


def _signatures(path: Path) -> dict[str, set[str]]:
    """Names of the classes, functions and methods of a file, with their parameters."""
    found: dict[str, set[str]] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef):
                found[f"{prefix}{node.name}"] = set()
                visit(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found[f"{prefix}{node.name}"] = _parameters(node.args)

    visit(ast.parse(path.read_text("utf-8")).body, "")
    return found


def _parameters(args: ast.arguments) -> set[str]:
    rest = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return {arg.arg for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, *rest)}
