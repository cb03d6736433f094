# SPDX-License-Identifier: Apache-2.0
"""Small models with the class names, attributes and calls of the projects we integrate with.

They are ours, written for the tests that run where the projects' files are not at hand.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention
from upstream_models import IMAGE, ByteProcessor, randomise

SIZE, SIDE, WIDTH, HIDDEN = 112, 8, 48, 32
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "image_size": SIZE, "patch_size": 14,
}  # fmt: skip


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))


def _siglip() -> nn.Module:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))


# -- ReKV: an attention forward that closes over the settings of a memory in blocks ---------------


class ContextManager:
    """Keys of a stream; whole blocks behind the first ``n_init`` tokens and the window."""

    def __init__(self, n_init: int, n_local: int, block_size: int, exc_block_size: int) -> None:
        assert exc_block_size <= n_local
        self.n_init, self.n_local = n_init, n_local
        self.block_size, self.exc_block_size = block_size, exc_block_size
        self.local_k = torch.empty(0)
        self.length = 0

    def append(self, keys: Tensor) -> Tensor:
        self.length += keys.shape[1]
        assert (self.length - self.n_init) % self.block_size == 0, "blocks must be whole"
        assert keys.shape[1] in (self.n_init, *range(0, 10**4, self.exc_block_size))
        self.local_k = keys if self.length == keys.shape[1] else torch.cat([self.local_k, keys], 1)
        self.local_k = self.local_k[:, -self.n_local :]
        return self.local_k


def rekv_attention_forward(
    n_local, n_init, topk, chunk_size, block_size, max_cached_block, exc_block_size, fattn,
    async_global_stream=True, pin_memory=False, *args, **kwargs,
):  # fmt: skip
    def forward(self, hidden, past):
        if past is None:
            assert topk % chunk_size == 0
            assert max_cached_block >= topk
            assert (fattn, async_global_stream, pin_memory) == (False, False, False)
            past = ContextManager(n_init, n_local, block_size, exc_block_size)
        keys = past.append(self.k_proj(hidden))
        mixed = scaled_dot_product_attention(self.q_proj(hidden), keys, keys)
        return self.o_proj(mixed), past

    return forward


def huggingface_forward(forward):
    def hf_forward(self, hidden_states, past_key_value=None, **kwargs):
        return forward(self, hidden_states, past_key_value)

    return hf_forward


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.o_proj = (nn.Linear(HIDDEN, HIDDEN) for _ in range(3))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(128, HIDDEN)
        self.layers = nn.ModuleList([Attention() for _ in range(2)])

    def forward(self, input_ids=None, inputs_embeds=None, past_key_values=None, **kwargs):
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        kept = []
        for layer, past in zip(self.layers, past_key_values or (None, None), strict=True):
            mixed, past = layer.forward(x, past)
            x = x + mixed
            kept.append(past)
        return types.SimpleNamespace(last_hidden_state=x, past_key_values=tuple(kept))


class LlavaOneVision_ReKV(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(vision_feature_layer=-1)
        self.vision_tower, self.multi_modal_projector = _siglip(), _mlp(WIDTH)
        self.language_model = LanguageModel()
        self.processor, self.n_frame_tokens, self.n_local = ByteProcessor(), 16, 48
        self.kv_cache = None
        forward = huggingface_forward(
            rekv_attention_forward(
                n_local=48, n_init=3, topk=2, chunk_size=1, block_size=16, max_cached_block=8,
                exc_block_size=16, fattn=False, async_global_stream=False,
            )
        )  # fmt: skip
        for layer in self.language_model.layers:
            layer.forward = types.MethodType(forward, layer)

    def encode_init_prompt(self) -> None:
        self.kv_cache = self.language_model(torch.tensor([[1, 2, 3]])).past_key_values

    def _get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        batch, frames = pixel_values_videos.shape[:2]
        seen = self.vision_tower(pixel_values_videos.flatten(0, 1), output_hidden_states=True)
        tokens = self.multi_modal_projector(seen.hidden_states[self.config.vision_feature_layer])
        image = tokens.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
        pooled = interpolate(image, size=(SIDE // 2, SIDE // 2), mode="bilinear")
        return pooled.flatten(2).transpose(1, 2).reshape(batch, frames * 16, -1)

    def encode_video(self, video: Tensor, encode_chunk_size: int = 64) -> None:
        for chunk in video.split(encode_chunk_size):
            pixels = self.processor.video_processor(chunk, return_tensors="pt").pixel_values_videos
            features = self._get_video_features(pixels)
            assert self.n_local >= features.shape[1]
            made = self.language_model(inputs_embeds=features, past_key_values=self.kv_cache)
            self.kv_cache = made.past_key_values

    def question_answering(self, input_text: dict[str, str], max_new_tokens: int) -> list[int]:
        ids = torch.tensor([self.processor(input_text["question"]).input_ids])
        query = self.language_model.embed(ids).mean(1)
        return [int((layer.local_k @ query[0]).argmax()) for layer in self.kv_cache]


# -- LLaVA-NeXT and StreamForest ------------------------------------------------------------------


class SigLipVisionTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = _siglip()
        self.num_patches_per_side = SIDE

    def forward(self, images: Tensor) -> Tensor:
        return self.vision_tower(images, output_hidden_states=True).hidden_states[-1]


class LlavaModel(nn.Module):
    def __init__(self, projector: nn.Module) -> None:
        super().__init__()
        self.vision_tower, self.mm_projector = SigLipVisionTower(), projector
        self.embed_tokens = nn.Embedding(128, HIDDEN)
        self.image_newline = nn.Parameter(torch.empty(HIDDEN))


class _Llava(nn.Module):
    """What both have: a tower, and tokens spliced into a prompt with no count of placeholders."""

    def __init__(self, projector: nn.Module, **config: Any) -> None:
        super().__init__()
        self.model = LlavaModel(projector)
        self.config = types.SimpleNamespace(**config)

    def get_model(self) -> LlavaModel:
        return self.model

    def get_vision_tower(self) -> nn.Module:
        return self.model.vision_tower

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images,
        modalities=("image",), image_sizes=None,
    ):  # fmt: skip
        images = [x.unsqueeze(0) if x.ndim == 3 else x for x in images]
        videos = [number for number, kind in enumerate(modalities) if kind == "video"]
        features = self._features(images, videos)
        parts, start = [], 0
        for place, feature in zip((input_ids[0] == IMAGE).nonzero()[:, 0].tolist(), features,
                                  strict=True):  # fmt: skip
            parts += [self.model.embed_tokens(input_ids[0, start:place]), feature]
            start = place + 1
        parts.append(self.model.embed_tokens(input_ids[0, start:]))
        return None, None, None, past_key_values, torch.cat(parts)[None], None


class LlavaNext(_Llava):
    """Tokens of a frame pooled to 4 x 4, each row with a newline."""

    def __init__(self, newlines: str = "grid") -> None:
        super().__init__(
            _mlp(WIDTH), mm_patch_merge_type="spatial_unpad", mm_newline_position=newlines
        )

    def encode_images(self, images: Tensor) -> Tensor:
        return self.model.mm_projector(self.get_vision_tower()(images))

    def get_2dPool(self, image_feature: Tensor, stride: int = 2) -> Tensor:
        image = image_feature.unflatten(1, (SIDE, SIDE)).permute(0, 3, 1, 2)
        return nn.functional.avg_pool2d(image, stride).flatten(2).transpose(1, 2)

    def add_token_per_grid(self, image_feature: Tensor) -> Tensor:
        side = round(image_feature.shape[1] ** 0.5)
        rows = image_feature.unflatten(1, (side, side))
        newline = self.model.image_newline.expand(len(rows), side, 1, -1)
        return torch.cat([rows, newline], dim=2).flatten(0, 2)

    def _features(self, images: list[Tensor], videos: list[int]) -> list[Tensor]:
        encoded = self.encode_images(torch.cat(images)).split([len(image) for image in images])
        made = []
        for number, feature in enumerate(encoded):
            if number not in videos:
                made.append(feature[0])
            elif self.config.mm_newline_position == "grid":
                made.append(self.add_token_per_grid(self.get_2dPool(feature)))
            else:
                made.append(self.get_2dPool(feature).flatten(0, 1))
        return made


class Memory(nn.Module):
    """Every frame a quarter of its tokens, the last one whole."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = _mlp(WIDTH)

    def forward(self, x: Tensor, local_num_frames: int, is_image: bool = False) -> Tensor:
        assert x.shape[1] == SIDE**2
        if is_image:
            return self.mlp(x)
        return self.mlp(torch.cat([x[:-1, ::4].flatten(0, 1), x[-1]])[None])


class StreamForest(_Llava):
    def __init__(self) -> None:
        super().__init__(
            Memory(), vision_encode_type="image_video_memory_batch", mm_patch_merge_type="flat"
        )

    def encode_image_video_memory_batch(self, images_list, video_idx_in_batch):
        batches = torch.cat(images_list).split(3)
        features = torch.cat([self.get_vision_tower()(batch) for batch in batches])
        is_image = len(video_idx_in_batch) == 0
        return [self.model.mm_projector(features, local_num_frames=1, is_image=is_image)]

    def generate_online(self, inputs, images, modalities=("video",), **kwargs):
        features = self.get_vision_tower()(images[0])
        return [self.model.mm_projector.mlp(features[: n + 1, ::4].flatten(0, 1)[None])
                for n in range(len(features))]  # fmt: skip

    def _features(self, images: list[Tensor], videos: list[int]) -> list[Tensor]:
        return [x.flatten(0, 1) for x in self.encode_image_video_memory_batch(images, videos)]


# -- Dispider -------------------------------------------------------------------------------------


class CLIPVisionTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
        self.select_layer = -2

    def forward(self, images: Tensor) -> Tensor:
        seen = self.vision_tower(images, output_hidden_states=True)
        return seen.hidden_states[self.select_layer][:, 1:]


class PoolProjector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resolution, self.pool_num = 16, 4


class StreamGroundQwenForCausalLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_tower, self.model.mm_projector = CLIPVisionTower(), PoolProjector()

    def get_model(self) -> nn.Module:
        return self.model

    def get_vision_tower(self) -> nn.Module:
        return self.model.vision_tower

    def extract_images(self, images: Tensor, vision_encoder=None) -> Tensor:
        return torch.cat([self.get_vision_tower()(clip) for clip in images.split(16)])

    def mix_spatial_tokens(self, features: Tensor) -> Tensor:
        blocks = features.unflatten(1, (SIDE // 2, 2, SIDE // 2, 2)).permute(0, 1, 3, 2, 4, 5)
        return blocks.flatten(3).flatten(1, 2)


class LongQwen2ForCausalLM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.compressor = nn.Module()
        self.model.compressor.compressor = StreamGroundQwenForCausalLM()
        self.model.clip_projector = nn.Linear(4 * WIDTH, HIDDEN)

    def get_model(self) -> nn.Module:
        return self.model

    def get_compressor(self) -> nn.Module:
        return self.model.compressor

    def encode_sequences(self, clips: Tensor, *_: Any) -> tuple[Tensor, int, None]:
        inner = self.get_compressor().compressor
        mixed = inner.mix_spatial_tokens(inner.extract_images(clips.flatten(0, 1)))
        chosen = mixed.unflatten(0, clips.shape[:2]).flatten(1, 2)[None]
        memory = chosen[..., -4:, :HIDDEN]
        features = torch.cat([self.get_model().clip_projector(chosen), memory], dim=-2)
        return features.flatten(1, 2), 0, None


STAND_INS = {
    "rekv": LlavaOneVision_ReKV,
    "streamforest": StreamForest,
    "dispider": LongQwen2ForCausalLM,
    "llava_next": LlavaNext,
    "llava_next-no_token": lambda: LlavaNext("no_token"),
}


def stand_in(name: str) -> nn.Module:
    """A stand-in with random weights."""
    return randomise(STAND_INS[name]())
