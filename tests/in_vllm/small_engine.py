# SPDX-License-Identifier: Apache-2.0
"""A real engine on the CPU, in this process, with small models that have random weights."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from vllm_checkpoints import SIDE

from stc_video.integrations.vllm.qwen import QwenEncoder
from stc_video.integrations.vllm.settings import Settings
from stc_video.integrations.vllm.siglip import SiglipEncoder

#: read by vLLM, and by the plugin, when they are imported
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "STC_VLLM": "threshold=0.9,prune=stc",
}

Frames = Sequence[np.ndarray]


class Engine:
    """An engine, its model, and what left the model's encoder since it was last asked.

    A frame is a picture. LLaVA-OneVision cuts pictures into views, so there it is a video of one.
    """

    def __init__(self, name: str, folder: str, **settings: object) -> None:
        os.environ.update(ENVIRONMENT)
        from vllm import LLM
        from vllm.distributed import cleanup_dist_env_and_memory

        # Else the first engine of a process settles whether there are groups for experts.
        cleanup_dist_env_and_memory()
        self.name, self.side = name, SIDE[name]
        self.has_views = name == "llava-onevision"
        chosen = {
            "dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "max_num_seqs": 8,
            "max_num_batched_tokens": 64, "block_size": 32, "seed": 0, "disable_log_stats": True,
            "limit_mm_per_prompt": {"image": 8, "video": 4},
        } | settings  # fmt: skip
        self.llm = LLM(model=folder, **chosen)
        self.model = self.llm.apply_model(lambda model: model)[0]
        self.visual = self.model.vision_tower if self.has_views else self.model.visual
        self.rows_at_start = self.model.stc_encoder.totals.rows
        self.encoded: list[torch.Tensor] = []
        stock = self.model.embed_multimodal

        def recorded(**kwargs: object) -> object:
            made = stock(**kwargs)
            self.encoded += [tokens.clone() for tokens in made]
            return made

        self.model.embed_multimodal = recorded

    def attach(self, **settings: object) -> QwenEncoder | SiglipEncoder:
        """Put a new encoder on the tower, and forget what vLLM has cached."""
        self.model.stc_encoder.detach()
        chosen = Settings(**{"threshold": 0.9, **settings})
        self.model.stc_encoder = type(self.model.stc_encoder)(self.visual, chosen, print)
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
        self.cached_tokens = [answer.num_cached_tokens for answer in answers]
        return [list(answer.outputs[0].token_ids) for answer in answers]

    def embed(self, frames: Frames, **options: object) -> list[torch.Tensor]:
        """Send each frame of a stream as a request; returns what left the encoder for each."""
        made = []
        for frame in frames:
            self.encoded.clear()
            self.ask(self.shown([frame], **options), tokens=1)
            made += self.encoded
        return made

    def shown(self, frames: Frames, **options: object) -> dict[str, object]:
        """A request that shows each of some frames whole."""
        if self.has_views:
            return videos([[frame] for frame in frames], **options)
        return pictures(frames, **options)


def pictures(frames: Frames, **options: object) -> dict[str, object]:
    """A request with pictures."""
    from PIL import Image

    images = [Image.fromarray(frame) for frame in frames]
    text = "<|vision_start|><|image_pad|><|vision_end|>" * len(frames) + "what?"
    return _request(text, {"image": images}, options)


def video(frames: Frames, **options: object) -> dict[str, object]:
    """A request with a video, of which every frame is taken."""
    return videos([frames], **options)


def videos(clips: Sequence[Frames], **options: object) -> dict[str, object]:
    """A request with videos, of which every frame is taken."""
    items = []
    for frames in clips:
        metadata = {
            "fps": 2.0, "duration": len(frames) / 2, "total_num_frames": len(frames),
            "frames_indices": list(range(len(frames))), "video_backend": "opencv",
            "do_sample_frames": False,
        }  # fmt: skip
        items.append((np.stack(frames), metadata))
    text = "<|vision_start|><|video_pad|><|vision_end|>" * len(clips) + "what?"
    return _request(text, {"video": items}, options)


def _request(text: str, data: dict[str, object], options: dict[str, object]) -> dict[str, object]:
    request = {"prompt": f"look: {text}", "multi_modal_data": data}
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
