# SPDX-License-Identifier: Apache-2.0
"""Through the processors of transformers: what they make, the accelerated model, and a session.

Those for video need torchvision, and that of SmolVLM num2words.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from test_video_llm_sessions import GREEDY, QUESTION, writer_of
from tiny_qwen_vl import pictures as camera
from tiny_video_llms import QWEN, SIDE, SMALL, make_model, model_names

from stc_video import StreamingSession, accelerate

pytest.importorskip("torchvision", reason="transformers needs it for videos")
if Version(transformers.__version__) < Version("5"):
    pytest.skip("processors take no other tokenizer than their own", allow_module_level=True)

FRAMES = 4
SQUARE = {"height": SIDE, "width": SIDE}
NAMES = [name for name in model_names() if "moe" not in name]


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def processor_of(name: str) -> Any:
    """The processor of a family's released models, for pictures of the small model's size."""
    writer = writer_of(name)
    writer.add_special_tokens({"pad_token": "[PAD]"})
    template = {"chat_template": writer.chat_template}
    if name in QWEN:
        patches = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
                   "size": {"shortest_edge": 28 * 28, "longest_edge": 308 * 336 * 8}}  # fmt: skip
        return transformers.Qwen3VLProcessor(
            transformers.Qwen2VLImageProcessor(**patches), writer,
            transformers.Qwen3VLVideoProcessor(**patches), **template,
        )  # fmt: skip
    if name == "internvl":
        marks = {"start_image_token": "<img>", "end_image_token": "</img>",
                 "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}  # fmt: skip
        for key, mark in marks.items():
            setattr(writer, key, mark)
            setattr(writer, f"{key}_id", writer.convert_tokens_to_ids(mark))
        images = transformers.GotOcr2ImageProcessor(size=SQUARE)
        videos = transformers.InternVLVideoProcessor(size=SQUARE)
        return transformers.InternVLProcessor(images, writer, videos, SMALL, **template)
    if name == "smolvlm":
        pytest.importorskip("num2words")
        edges = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}}
        images = transformers.SmolVLMImageProcessor(**edges, do_image_splitting=False)
        videos = transformers.SmolVLMVideoProcessor(**edges)
        return transformers.SmolVLMProcessor(images, writer, videos, SMALL, **template)
    if name == "gemma3":
        marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>",
                 "eoi_token": "<end_of_image>"}  # fmt: skip
        for key, mark in marks.items():
            setattr(writer, key, mark)
            setattr(writer, f"{key}_id", writer.convert_tokens_to_ids(mark))
        images = transformers.Gemma3ImageProcessor(size=SQUARE)
        return transformers.Gemma3Processor(images, writer, image_seq_length=SMALL, **template)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE}
    return transformers.LlavaNextVideoProcessor(
        transformers.LlavaNextVideoVideoProcessor(**size),
        transformers.LlavaNextImageProcessor(**size, image_grid_pinpoints=[[SIDE, SIDE]]),
        writer, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, **template,
    )  # fmt: skip


def inputs_of(name: str, processor: Any, frames: np.ndarray) -> dict[str, torch.Tensor]:
    if name == "gemma3":  # whose videos are pictures
        content = [*[{"type": "image"}] * len(frames), {"type": "text", "text": QUESTION}]
        given = {"images": [list(frames)]}
    else:
        content = [{"type": "video"}, {"type": "text", "text": QUESTION}]
        given = shown([[frames]])
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    # Newer releases leave the marks of the template around the video, which older ones and vLLM do
    # not; a session writes what the older ones write.
    text = text.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    # As its apply_chat_template does: the template has begun the text, if anything does.
    return dict(processor(text=[text], **given, add_special_tokens=False, return_tensors="pt"))


def shown(videos: list[list[np.ndarray]]) -> dict[str, Any]:
    """Arguments of a processor for the videos of each prompt, of a frame per second."""
    facts = {"fps": 1.0, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES)),
             "duration": float(FRAMES)}  # fmt: skip
    metadata = [facts for of_prompt in videos for _ in of_prompt]
    return {"videos": videos, "video_metadata": metadata, "do_sample_frames": False}


def clip(name: str, count: int) -> np.ndarray:
    """Frames of a size at which neither side resizes anything."""
    height, width = (308, 336) if name in QWEN else (SIDE, SIDE)
    return np.stack([np.tile(p, (3, 3, 1))[:height, :width] for p in camera(count)])


@pytest.mark.parametrize("name", NAMES)
def test_what_the_processor_makes(name):
    model, processor = make_model(name), processor_of(name)
    frames = clip(name, FRAMES)
    given = inputs_of(name, processor, frames)
    logits = model(**given).logits[0, -1]
    answer = model.generate(**given, **GREEDY)
    with accelerate(model, cache=None, prune="none").stc:
        assert torch.equal(model.generate(**given, **GREEDY), answer)
    with accelerate(model, cache=None, tokens_per_frame=2).stc:
        pruned = model.generate(**given, **GREEDY)
        assert torch.equal(pruned[:, : given["input_ids"].shape[1]], given["input_ids"])
    if name == "smolvlm":  # whose opening sentence a session leaves out
        return
    parts = SimpleNamespace(
        tokenizer=processor.tokenizer,
        image_processor=getattr(processor, "video_processor", processor.image_processor),
    )
    with StreamingSession(model, parts, memory="plain", cache=None, prune="none") as session:
        session.push(frames, timestamps=[float(k) for k in range(FRAMES)])
        torch.testing.assert_close(session.logits(QUESTION), logits, atol=1e-4, rtol=0)


#: prompts, with I and V in place of an image and a video
PROMPTS = {
    "image": ["I what?"],
    "two videos": ["V and V what?"],
    "image and video": ["I and V what?"],
    "padded batch": ["V what?", "and in this one V what?"],
}


@pytest.mark.parametrize("case", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_pruned_is_the_stock_model(name, case):
    if (name, case) == ("smolvlm", "image and video"):
        pytest.skip("its processor takes images or videos, not both")
    model, processor = make_model(name), processor_of(name)
    image, video = {"internvl": "<IMG_CONTEXT>"}.get(name, "<image>"), "<video>"
    if name in QWEN:
        image, video = (
            f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")
        )
    frames, given = clip(name, FRAMES + 1), {}
    if name == "gemma3":
        image = "<start_of_image>"
        video = image * FRAMES
        parts = {"I": [frames[-1]], "V": list(frames[:FRAMES])}
        given["images"] = [[f for c in p for f in parts.get(c, [])] for p in PROMPTS[case]]
    elif "image" in case:
        given["images"] = [[frames[-1]]]
    if "V" in PROMPTS[case][0] and name != "gemma3":
        counts = (prompt.count("V") for prompt in PROMPTS[case])
        given |= shown([[frames[k : k + FRAMES] for k in range(count)] for count in counts])
    text = [prompt.translate({ord("I"): image, ord("V"): video}) for prompt in PROMPTS[case]]
    padding = {"padding": True, "padding_side": "left"}
    inputs = dict(processor(text=text, **given, **padding, return_tensors="pt"))
    answer = model.generate(**inputs, **GREEDY)
    with accelerate(model, cache=None, prune="none").stc:
        assert torch.equal(model.generate(**inputs, **GREEDY), answer)
