# SPDX-License-Identifier: Apache-2.0
"""A real engine on the CPU, in this process, with small models that have random weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from vllm_checkpoints import SIDE

from stc_video.integrations.vllm.encoder import StreamEncoder
from stc_video.integrations.vllm.settings import Settings

#: read by vLLM, and by the plugin, when they are imported
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "STC_VLLM": "threshold=0.9,prune=stc",
}

Frames = Sequence[np.ndarray]


class Engine:
    """An engine, its model, and what left the model's encoder since it was last asked."""

    def __init__(self, name: str, folder: str, **settings: object) -> None:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM

        self.name, self.side = name, SIDE[name]
        self.llm = LLM(
            model=folder, dtype="float32", enforce_eager=True, max_model_len=1024,
            max_num_seqs=8, max_num_batched_tokens=64, limit_mm_per_prompt={"image": 8, "video": 4},
            seed=0, disable_log_stats=True, **settings,
        )  # fmt: skip
        self.model = self.llm.apply_model(lambda model: model)[0]
        self.encoded: list[torch.Tensor] = []
        stock = self.model.embed_multimodal

        def recorded(**kwargs: object) -> object:
            made = stock(**kwargs)
            self.encoded += [tokens.clone() for tokens in made]
            return made

        self.model.embed_multimodal = recorded

    def attach(self, **settings: object) -> StreamEncoder:
        """Put a new encoder on the tower, and forget what vLLM has cached."""
        self.model.stc_encoder.detach()
        chosen = Settings(**{"threshold": 0.9, **settings})
        self.model.stc_encoder = StreamEncoder(self.model.visual, chosen, print)
        self.forget()
        return self.model.stc_encoder

    def forget(self) -> None:
        """Let no request be served from what vLLM has cached."""
        self.llm.reset_prefix_cache()
        self.llm.reset_mm_cache()
        self.llm.llm_engine.reset_encoder_cache()
        self.encoded.clear()

    def ask(self, *requests: dict[str, object], tokens: int = 5) -> list[list[int]]:
        """Send requests in one batch; returns the ids of their answers."""
        from vllm import SamplingParams

        settings = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        answers = self.llm.generate(list(requests), settings, use_tqdm=False)
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def embed(self, frames: Frames, **options: object) -> list[torch.Tensor]:
        """Send each frame of a stream as a request; returns what left the encoder for each."""
        made = []
        for frame in frames:
            self.encoded.clear()
            self.ask(pictures([frame], **options), tokens=1)
            made += self.encoded
        return made


def pictures(frames: Frames, **options: object) -> dict[str, object]:
    """A request with pictures."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    text = "<|vision_start|><|image_pad|><|vision_end|>" * len(frames) + "what?"
    return _request(text, {"image": images}, options)


def video(frames: Frames, **options: object) -> dict[str, object]:
    """A request with a video, of which every frame is taken."""
    metadata = {
        "fps": 2.0, "duration": len(frames) / 2, "total_num_frames": len(frames),
        "frames_indices": list(range(len(frames))), "video_backend": "opencv",
        "do_sample_frames": False,
    }  # fmt: skip
    text = "<|vision_start|><|video_pad|><|vision_end|>what?"
    return _request(text, {"video": [(np.stack(frames), metadata)]}, options)


def _request(text: str, data: dict[str, object], options: dict[str, object]) -> dict[str, object]:
    request = {"prompt": text, "multi_modal_data": data}
    return request | ({"mm_processor_kwargs": options} if options else {})


def noise(side: int, seed: int) -> np.ndarray:
    """A frame of noise in blocks of 8 x 8 pixels."""
    blocks = np.random.default_rng(seed).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    return blocks.repeat(8, 0).repeat(8, 1)


def partly(frame: np.ndarray, seed: int, share: int = 4) -> np.ndarray:
    """A frame of which one corner is another: a side / share square."""
    side = len(frame)
    changed = frame.copy()
    corner = slice(0, side // share)
    changed[corner, corner] = noise(side, seed)[corner, corner]
    return changed
