# SPDX-License-Identifier: Apache-2.0
"""Small models of random weights out of the authors' own files, and one way to run each.

What of a file needs a GPU or a download is replaced when it is loaded; the lists of those
replacements are the constants below.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from upstream import Source, checkout

#: id by which LLaVA's code marks the place of a picture
IMAGE = -200
FRAMES_PER_CLIP = 16

# Their registration with transformers would outlive the test.
_UNREGISTERED = {
    "AutoConfig.register(": "(lambda *_: None)(",
    "AutoModelForCausalLM.register(": "(lambda *_: None)(",
}
# Dispider forces flash attention, and its tower names a proxy.
_DISPIDER = _UNREGISTERED | {
    "config._attn_implementation = 'flash_attention_2'": "config._attn_implementation = 'sdpa'",
    "self.proxies = ": "self.proxies = None and ",
}
_REKV = {
    'device="cuda"': 'device="cpu"',
    'device = "cuda"': 'device = "cpu"',
    "torch.cuda.": "no_cuda.",
    "assert _t.is_cuda": "assert True",
}


def randomise(model: nn.Module) -> nn.Module:
    """Random weights of activations of order one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.dim() == 1 and "norm" in name and name.endswith("weight")
            parameter.copy_(1.0 + 0.1 * noise if is_scale else 0.12 * noise)
    return model.eval()


@dataclass(frozen=True)
class Language:
    """Size of the language models."""

    hidden: int = 64
    vocabulary: int = 128

    def settings(self) -> dict[str, Any]:
        """Settings of a Qwen2 configuration."""
        return {
            "hidden_size": self.hidden, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": self.vocabulary,
            "max_position_embeddings": 32768, "pad_token_id": 0, "use_sliding_window": False,
        }  # fmt: skip


LANGUAGE = Language()


# -- ReKV -----------------------------------------------------------------------------------------


class ByteProcessor:
    """What ReKV asks of a processor: pixels of frames, and ids of a text."""

    eos_token_id = 127

    @property
    def tokenizer(self) -> ByteProcessor:
        """It is its own tokenizer."""
        return self

    def __call__(self, text: str) -> Any:
        """Ids of a text."""
        return types.SimpleNamespace(input_ids=[ord(letter) % 100 for letter in text])

    def video_processor(self, video: Tensor, return_tensors: str) -> Any:
        """Pixels of frames (F, H, W, 3)."""
        pixels = video.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return types.SimpleNamespace(pixel_values_videos=pixels[None])

    def decode(self, ids: list[int], **_: Any) -> list[int]:
        """The ids themselves."""
        return ids


def _no_cuda() -> Any:
    """What ReKV uses of torch.cuda, doing nothing."""
    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    event = types.SimpleNamespace(record=lambda _: None, wait=lambda _: None)
    return types.SimpleNamespace(
        Stream=lambda: stream, current_stream=lambda: stream, Event=lambda: event,
        stream=lambda _: contextlib.nullcontext(), empty_cache=lambda: None,
        ipc_collect=lambda: None, synchronize=lambda: None,
    )  # fmt: skip


@contextlib.contextmanager
def rekv(size: int = 112, frames_in_window: int = 3) -> Iterator[Any]:
    """Their ``LlavaOneVision_ReKV``, patched by their ``patch_hf`` as their `load_model` does."""
    logger = types.SimpleNamespace(debug=lambda *_: None, info=lambda *_: None)
    source = Source(
        checkout("REKV", needs=["4.45"]),
        "model",
        run_init=frozenset({"model.attention", "model.attention.dot_production_attention"}),
        replace=_REKV,
        names={"no_cuda": _no_cuda()},
        stubs={"logzero": {"logger": logger}},
    )
    with source.importable():
        theirs = source.load("model.llava_onevision_rekv")
        side = size // 14
        tokens = ((side + 1) // 2) ** 2
        config = transformers.LlavaOnevisionConfig(
            vision_config={
                "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 96,
                "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": size,
                "patch_size": 14, "vision_use_head": False,
            },
            text_config={"model_type": "qwen2", **LANGUAGE.settings()},
        )  # fmt: skip
        window = frames_in_window * tokens
        model = theirs.LlavaOneVision_ReKV(
            config, ByteProcessor(), tokens, torch.tensor([[1, 2, 3]]), window, 2, 1
        )
        randomise(model)
        rotary = model.language_model.model.layers[0].self_attn.rotary_emb
        # Released versions of transformers have lost these two.
        rotary.base, rotary.dim = 10000.0, LANGUAGE.hidden // 4
        theirs.patch_hf(
            model.language_model, attn_kwargs={}, n_init=3, n_local=window, fattn=False,
            block_size=tokens, topk=2, chunk_size=1, max_cached_block=8, exc_block_size=tokens,
            pin_memory=False, async_global_stream=False,
        )  # fmt: skip
        yield model


def run_rekv(model: Any, frames: Tensor, chunk: int = 3) -> list[Tensor]:
    """Encode frames (F, H, W, 3) uint8 and answer; returns the window's keys and the answer."""
    model.kv_cache = None
    model.encode_init_prompt()
    model.encode_video(frames, encode_chunk_size=chunk)
    keys = [layer.local_k.clone() for layer in model.kv_cache]
    lengths = torch.tensor([layer.length for layer in model.kv_cache])
    text = {"question": "what?", "prompt": "what?\n"}
    answer = model.question_answering(text, max_new_tokens=4)
    model.kv_cache = None
    return [*keys, lengths, torch.tensor(answer)]


# -- LLaVA-NeXT and StreamForest ------------------------------------------------------------------


def _siglip_tower(source: Source, size: int) -> nn.Module:
    """Their tower, without the download."""
    theirs = source.load("llava.model.multimodal_encoder.siglip_encoder")
    tower = theirs.SigLipVisionTower("none", types.SimpleNamespace(), delay_load=True)
    tower.config = theirs.SigLipVisionConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=5, num_attention_heads=4,
        image_size=size, patch_size=14,
    )  # fmt: skip
    tower.vision_tower = theirs.SigLipVisionModel(tower.config)
    # As their `load_model` does.
    del tower.vision_tower.vision_model.encoder.layers[-1:]
    tower.vision_tower.vision_model.head = nn.Identity()
    tower.is_loaded = True
    return tower


def _llava_stubs(**builders: Any) -> dict[str, dict[str, Any]]:
    silent = {"rank0_print": lambda *_: None, "rank_print": lambda *_: None}
    empty = types.SimpleNamespace()
    return {
        "llava.utils": silent,
        "llava.mm_utils": {"get_anyres_image_grid_shape": None},
        "llava.model.multimodal_encoder.builder": {"build_vision_tower": builders["tower"]},
        "llava.model.multimodal_projector.builder": {"build_vision_projector": builders["mlp"]},
        "llava.model.multimodal_resampler.builder": {
            "build_vision_resampler": lambda *_, **__: nn.Identity()
        },
        "psutil": {},
        "torchvision": {"transforms": empty},
        "torchvision.transforms": {"functional": empty},
        "torchvision.transforms.functional": {},
    }


@contextlib.contextmanager
def _llava(name: str, projector: Callable[[Source, Any], nn.Module], **settings: Any) -> Any:
    """Their ``LlavaQwenForCausalLM`` with a SigLIP tower of 729 tokens and this projector."""
    source = Source(
        checkout(name, needs=["4."]),
        "llava",
        replace=_UNREGISTERED,
        names={"print": lambda *_: None},
        stubs=_llava_stubs(
            tower=lambda *_, **__: _siglip_tower(source, 384),
            mlp=lambda config, vision_cfg=None: projector(source, config),
        ),
    )
    with source.importable():
        theirs = source.load("llava.model.language_model.llava_qwen")
        config = theirs.LlavaQwenConfig(
            **LANGUAGE.settings(), mm_vision_tower="none", mm_hidden_size=48, **settings
        )
        config.transformers_version = transformers.__version__
        yield randomise(theirs.LlavaQwenForCausalLM(config))


def llava_next(newlines: str = "grid") -> Any:
    """LLaVA-NeXT's model, as LLaVA-Video configures it: 13 x 13 tokens and newlines."""

    def mlp(_: Source, config: Any) -> nn.Module:
        width = config.hidden_size
        return nn.Sequential(nn.Linear(48, width), nn.GELU(), nn.Linear(width, width))

    return _llava(
        "LLAVA_NEXT", mlp, mm_patch_merge_type="spatial_unpad", mm_newline_position=newlines,
        mm_spatial_pool_mode="average", mm_spatial_pool_stride=2, add_faster_video=False,
    )  # fmt: skip


def streamforest() -> Any:
    """StreamForest's model with its event memory, in the settings of its released stages."""

    def memory(source: Source, config: Any) -> nn.Module:
        theirs = source.load("llava.model.multimodal_projector.projector_FSTW_PEMF")
        vision = types.SimpleNamespace(image_size=384, patch_size=14, num_attention_heads=4)
        return theirs.ToMe_FSTW_PEMF(config, vision)

    return _llava(
        "STREAMFOREST", memory, vision_encode_type="image_video_memory_batch",
        mm_patch_merge_type="flat", mm_local_num_frames=1, mm_pos_num_frames=1,
    )  # fmt: skip


def run_llava(model: Any, *items: Tensor, kinds: tuple[str, ...] = ("video",)) -> list[Tensor]:
    """Prepare a prompt with videos (F, 3, H, W) or images; returns the embeddings."""
    ids = torch.tensor([[1, 2] + [IMAGE] * len(items) + [3, 4]])
    prepared = model.prepare_inputs_labels_for_multimodal(
        ids, None, None, None, None, list(items), list(kinds)
    )
    return [prepared[4]]


# -- Dispider -------------------------------------------------------------------------------------


@contextlib.contextmanager
def dispider(size: int = 112) -> Iterator[Any]:
    """Their ``LongQwen2ForCausalLM`` with their compressor in it."""
    source = Source(
        checkout("DISPIDER", needs=["4.41", "4.45", "4.46"]), "dispider", replace=_DISPIDER
    )
    with source.importable():
        clip = source.load("dispider.model.multimodal_encoder.clip_encoder")
        stream = source.load("dispider.model.language_model.stream_grounding_qwen")
        projectors = source.load("dispider.model.multimodal_projector.builder")
        builder = source.load("dispider.model.language_model.builder")
        long = source.load("dispider.model.language_model.long_qwen")

        config = stream.StreamGroundQwenConfig(**LANGUAGE.settings(), attn_implementation="sdpa")
        small = stream.StreamGroundQwenForCausalLM(config)
        # clip_projector is hard-wired to 4 x 1024 channels.
        vision = transformers.CLIPVisionConfig(
            hidden_size=1024, intermediate_size=64, num_hidden_layers=3, num_attention_heads=16,
            image_size=size, patch_size=14,
        )  # fmt: skip
        tower = nn.Module.__new__(clip.CLIPVisionTower)
        nn.Module.__init__(tower)
        tower.vision_tower = transformers.CLIPVisionModel(vision)
        tower.select_layer, tower.select_feature, tower.is_loaded = -2, "patch", True
        small.model.vision_tower = tower
        tokens = (size // 28) ** 2
        settings = types.SimpleNamespace(
            mm_projector_type="pool", mm_hidden_size=1024, hidden_size=LANGUAGE.hidden,
            resolution=tokens, pool_num=4,
        )  # fmt: skip
        small.model.mm_projector = projectors.build_vision_projector(settings)
        compressor = nn.Module.__new__(builder.StreamQwenCompressor)
        nn.Module.__init__(compressor)
        compressor.compressor, compressor.select_layer = small, 100

        model = long.LongQwen2ForCausalLM(long.LongConfig(**LANGUAGE.settings()))
        width = types.SimpleNamespace(
            compress_hidden_size=LANGUAGE.hidden, hidden_size=LANGUAGE.hidden
        )
        model.model.compressor = compressor
        model.model.compress_projector = builder.build_compress_projector(width)
        model.model.clip_projector = builder.build_clip_projector(width)
        yield randomise(model)


def run_dispider(model: Any, frames: Tensor) -> list[Tensor]:
    """Compress clips and choose among them; returns what their language model is given."""
    clips = frames.view(-1, FRAMES_PER_CLIP, *frames.shape[1:])
    seqs = torch.tensor([[5, 6, IMAGE]]).repeat(len(clips), 1)
    question, answer, todo = torch.tensor([[7, 8, 9]]), torch.tensor([[10]]), torch.tensor([[11]])
    with torch.no_grad():
        chosen = model.encode_sequences(
            clips, None, seqs, torch.ones_like(seqs), question, torch.ones_like(question), None,
            answer, todo, None, None, None, None,
        )  # fmt: skip
    return [chosen[0]]
