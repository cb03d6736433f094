# SPDX-License-Identifier: Apache-2.0
"""The families of whole models: what `accelerate` and sessions support, and of what kind it is.

One table for `adapter_for`, for loading by name, for `stc models` and for docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_QWEN3 = "stc_video.models.qwen3_vl:Qwen3VLAdapter"
_EVERY = ("plain", "rekv", "window")
_GUIDED = "guidance_scale, assistant_model"
_UNMARKED = (
    "a session writes no marks around the whole video, as transformers up to 5.0 and vLLM, where "
    "newer processors leave those of the chat template"
)
_GUESSED = (
    "two or more pictures of one tile in a prompt count as frames of one video, as its processor "
    "hands over both alike"
)


@dataclass(frozen=True)
class ModelFamily:
    """A family of video language models.

    Attributes
    ----------
    name
        What people call it.
    classes
        ``model_type`` of the configuration -> class of transformers.
    adapter
        Home of what runs it.
    memories
        Memories that a session may have.
    exact
        What is the stock model's, up to rounding, with nothing pruned and nothing cached.
    approximate
        What is not, and how.
    refused
        What is refused, and why.
    """

    name: str
    classes: dict[str, str]
    adapter: str
    memories: tuple[str, ...] = _EVERY
    exact: str = "generate, forward, sessions"
    approximate: str = ""
    refused: str = ""


MODEL_FAMILIES = (
    ModelFamily(
        "LLaVA-OneVision",
        {"llava_onevision": "LlavaOnevisionForConditionalGeneration"},
        "stc_video.models.llava_onevision:LlavaOnevisionAdapter",
    ),
    ModelFamily(
        "LLaVA-NeXT-Video",
        {"llava_next_video": "LlavaNextVideoForConditionalGeneration"},
        "stc_video.models.llava_onevision:LlavaNextVideoAdapter",
    ),
    ModelFamily(
        "Qwen2-VL, Qwen2.5-VL",
        {
            "qwen2_vl": "Qwen2VLForConditionalGeneration",
            "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        },
        "stc_video.models.qwen_vl:QwenVLAdapter",
        approximate="a session numbers text behind the largest position, as transformers 4.57",
        refused=_GUIDED,
    ),
    ModelFamily(
        "Qwen3-VL",
        {
            "qwen3_vl": "Qwen3VLForConditionalGeneration",
            "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
        },
        _QWEN3,
        approximate=_UNMARKED,
        refused=f"{_GUIDED}; pruners that merge tokens, whose deepstack "
        "features would have to be merged too",
    ),
    ModelFamily(
        "Qwen3.5",
        {
            "qwen3_5": "Qwen3_5ForConditionalGeneration",
            "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
        },
        _QWEN3,
        ("plain", "window"),
        approximate=_UNMARKED,
        refused=f"{_GUIDED}; memory rekv, as linear attention keeps one state "
        "of all frames, of which none can be retrieved",
    ),
    ModelFamily(
        "InternVL",
        {"internvl": "InternVLForConditionalGeneration"},
        "stc_video.models.picture_frames:InternVLAdapter",
        approximate=_GUESSED,
    ),
    ModelFamily(
        "SmolVLM",
        {"smolvlm": "SmolVLMForConditionalGeneration"},
        "stc_video.models.picture_frames:SmolVLMAdapter",
        exact="generate, forward",
        approximate=f"{_GUESSED}; a session leaves out the sentence with the number of frames, "
        "which a stream has not, and resizes once where the processor does twice",
        refused="pictures that do not fill their squares",
    ),
    ModelFamily(
        "Gemma 3",
        {"gemma3": "Gemma3ForConditionalGeneration"},
        "stc_video.models.picture_frames:Gemma3Adapter",
        approximate=_GUESSED,
        refused="pictures after the first turn of generate on releases before masks by block; in "
        "sessions other attention than eager and sdpa",
    ),
)


def family_of(model_type: str | None) -> ModelFamily | None:
    """Return the family of a model with this type, None if there is none."""
    return next((family for family in MODEL_FAMILIES if model_type in family.classes), None)


def supported_classes() -> str:
    """Name all classes, for messages."""
    return ", ".join(name for family in MODEL_FAMILIES for name in family.classes.values())
