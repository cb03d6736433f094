# SPDX-License-Identifier: Apache-2.0
"""Small towers of every vision class of transformers that looks like a ViT, and frames for them."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

PATCH, SIDE = 14, 4
SIZE = PATCH * SIDE
#: what makes a configuration small; those of its settings are used that it has
SMALL = {
    "hidden_size": 48,
    "embed_dim": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "depth": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "image_size": SIZE,
    "patch_size": PATCH,
    "out_hidden_size": 32,
    "projection_dim": 16,
    "mlp_ratio": 2,
    "drop_path_rate": 0.0,
}

#: the frames of a call, (F, 3, SIZE, SIZE) -> arguments of the tower
Arguments = Callable[[Tensor], dict[str, Any]]


def pixels(frames: Tensor) -> dict[str, Any]:
    return {"pixel_values": frames}


def clips(frames: Tensor) -> dict[str, Any]:
    """Each frame stands for a clip of two, (F, 2, 3, H, W)."""
    return {"pixel_values_videos": frames[:, None].repeat(1, 2, 1, 1, 1)}


def videos(frames: Tensor) -> dict[str, Any]:
    return {"pixel_values": frames[:, None].repeat(1, 2, 1, 1, 1)}


def patches_of(frames: Tensor, merge: int = 1, times: int = 1) -> Tensor:
    """Patches (F * places, 3, times, PATCH, PATCH) in merge blocks, frame by frame."""
    blocks = SIDE // merge
    cut = frames.view(len(frames), 3, blocks, merge, PATCH, blocks, merge, PATCH)
    flat = cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(-1, 3, 1, PATCH, PATCH)
    return flat.repeat(1, 1, times, 1, 1)


def grids(frames: Tensor, time: int = 1) -> Tensor:
    return torch.tensor([[time, SIDE, SIDE]] * (len(frames) // time))


def rows(merge: int = 2, times: int = 1, name: str = "pixel_values") -> Arguments:
    """Arguments of a tower that takes all pictures in one row, and their grids."""

    def make(frames: Tensor) -> dict[str, Any]:
        return {name: patches_of(frames, merge, times).flatten(1), "grid_thw": grids(frames)}

    return make


def video_rows(frames: Tensor) -> dict[str, Any]:
    """Arguments of a Qwen-VL tower: the frames are the temporal patches of one video."""
    flat = patches_of(frames, 2, 2).flatten(1)
    return {"hidden_states": flat, "grid_thw": grids(frames, len(frames))}


def merged_rows(frames: Tensor) -> dict[str, Any]:
    """Arguments of VideoLLaMA 3, which also asks for the side of the merge blocks."""
    return rows(1)(frames) | {"merge_sizes": torch.tensor([1] * len(frames))}


def whole_patches(frames: Tensor) -> dict[str, Any]:
    """Arguments of a tower whose patches are pictures, (M, 3, PATCH, PATCH)."""
    return {"pixel_values": patches_of(frames, 2)[:, :, 0], "grid_thw": grids(frames)}


def one_of_patches(frames: Tensor) -> dict[str, Any]:
    return {"pixel_values": patches_of(frames)[None, :, :, 0], "grid_thw": grids(frames)}


def strip(frames: Tensor) -> dict[str, Any]:
    """Arguments of MiniCPM-V: the patches of all pictures beside each other."""
    wide = torch.cat(list(patches_of(frames)[:, :, 0]), dim=-1)[None]
    return {"pixel_values": wide, "target_sizes": torch.tensor([[SIDE, SIDE]] * len(frames))}


def batch_of_rows(frames: Tensor) -> dict[str, Any]:
    return {"pixel_values": patches_of(frames).flatten(1).view(len(frames), SIDE**2, -1)}


def siglip2_rows(frames: Tensor) -> dict[str, Any]:
    """Arguments of SigLIP2: a grid of 3 x 4 places, padded to 16."""
    made = batch_of_rows(frames)["pixel_values"].clone()
    made[:, 12:] = 0.0
    mask = (torch.arange(SIDE**2) < 12).long().repeat(len(frames), 1)
    shapes = torch.tensor([[3, SIDE]] * len(frames))
    return {"pixel_values": made, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def padded(frames: Tensor) -> dict[str, Any]:
    """Arguments of Idefics' towers: the last row of patches is padding."""
    mask = torch.ones((len(frames), SIDE, SIDE), dtype=torch.bool)
    mask[:, -1] = False
    return {"pixel_values": frames, "patch_attention_mask": mask}


def placed_rows(frames: Tensor) -> dict[str, Any]:
    """Arguments of Gemma 4: rows of patches, and their places."""
    side = torch.arange(SIDE)
    places = torch.cartesian_prod(side, side).repeat(len(frames), 1, 1)
    return batch_of_rows(frames) | {"pixel_position_ids": places}


def padded_places(frames: Tensor) -> dict[str, Any]:
    """Arguments of Gemma 4: the last row of patches is padding."""
    made = placed_rows(frames)
    made["pixel_position_ids"][:, -SIDE:] = -1
    return made


def in_order(frames: Tensor) -> dict[str, Any]:
    """Arguments of ViT-MAE: its tokens are not shuffled."""
    return {"pixel_values": frames, "noise": torch.arange(SIDE**2.0).repeat(len(frames), 1)}


def tiles(frames: Tensor) -> dict[str, Any]:
    """Arguments of Mllama: one tile of one picture."""
    ones = torch.ones((len(frames), 1), dtype=torch.int64)
    return {
        "pixel_values": frames[:, None, None],
        "aspect_ratio_ids": ones,
        "aspect_ratio_mask": ones[:, :, None],
    }


@dataclass(frozen=True)
class Entry:
    """A tower: where its class is, how it is made small, and what it takes.

    ``path`` leads to the tower inside the class. ``refused`` is a part of the reason for which
    attaching or the first call is refused; ``several`` that for which more than one picture in a
    call is. Both are empty for a tower that is supported. ``since`` is the release of transformers
    from which that is so, if it has another class of the name before.
    """

    model: str
    name: str
    arguments: Arguments = pixels
    refused: str = ""
    several: str = ""
    path: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    since: str = "0"

    def __str__(self) -> str:
        what = "" if self.arguments is pixels else f"-{self.arguments.__name__}"
        return f"{self.model}-{self.name}{what}{'-' * bool(self.path)}{self.path}"

    def build(self) -> nn.Module:
        """Make the tower, or skip where this transformers has none."""
        try:
            home = f"transformers.models.{self.model}.modeling_{self.model}"
            model_class = getattr(importlib.import_module(home), self.name)
            known = model_class.config_class().to_dict()
        except (ImportError, AttributeError):
            pytest.skip(f"transformers {transformers.__version__} has no such {self.name}")
        if Version(transformers.__version__) < Version(self.since):
            pytest.skip(f"transformers {transformers.__version__} has another {self.name}")
        if self.arguments is video_rows and Version(transformers.__version__) < Version("4.57"):
            pytest.skip("towers of packed frames are supported from transformers 4.57 on")
        sizes = {name: value for name, value in SMALL.items() if name in known}
        config = model_class.config_class(**sizes | self.settings)
        if self.name == "GotOcr2VisionEncoder" and not hasattr(config, "image_size"):
            pytest.skip(f"transformers {transformers.__version__} makes it from another config")
        return strong(model_class._from_config(config)).get_submodule(self.path)


def strong(model: nn.Module) -> nn.Module:
    """Random weights of the size of trained ones, so that attention and places count."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and not name.endswith("bias"):
                parameter.copy_(1.0 + 0.2 * noise)
            elif parameter.dim() == 1:
                parameter.copy_(0.1 * noise)
            else:
                fan_in = math.prod(parameter.shape[1:])
                is_compared = any(part in name for part in ("q_proj", "k_proj", "query", "key"))
                scale = 1.5 if is_compared else 1.0
                parameter.copy_(scale * noise / fan_in**0.5)
    return model.eval()


def tensors(output: Any) -> Iterator[Tensor]:
    """All tensors of what a tower returns."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from tensors(value)


_VJEPA2 = {
    "crop_size": SIZE, "frames_per_clip": 2, "mlp_ratio": 2.0, "pred_hidden_size": 48,
    "pred_num_attention_heads": 4, "pred_num_hidden_layers": 2,
}  # fmt: skip
_DEEPSTACK = {"deepstack_visual_indexes": [1]}
_GRANITE = {"deepstack_visual_indexes": [0, 1], "scale_factor": 2}
_KIMI = {"pos_emb_height": 8, "pos_emb_width": 8}
_MOLMO2 = {"image_size": [SIZE, SIZE], "head_dim": 12, "num_position_embeddings": SIDE**2}
_GROUPED = _MOLMO2 | {"num_key_value_heads": 2}
_GEMMA4 = {"head_dim": 12, "pooling_kernel_size": 2}
_ERNIE = "Ernie4_5_VLMoeVisionTransformerPretrainedModel"
_INSERTED = {"insert_layer_id": 1}
_TIMESFORMER = {"num_frames": 2, "drop_path_rate": 0}
_VIVIT = {"num_frames": 2, "tubelet_size": [2, PATCH, PATCH]}
_VIDEOPRISM = {
    "num_frames": 2, "tubelet_size": [1, PATCH, PATCH], "num_spatial_layers": 2,
    "num_temporal_layers": 1, "num_auxiliary_layers": 1,
}  # fmt: skip
_SWIN = {"num_heads": [2, 2], "depths": [1, 1], "patch_size": 4, "mlp_ratio": 2.0}
_HIERA = {
    "image_size": [64, 64], "patch_size": [7, 7], "mlp_ratio": 2.0, "depths": [1, 1, 1, 1],
    "num_heads": [1, 2, 4, 8],
}  # fmt: skip
_MLLAMA = {
    "num_global_layers": 1, "max_num_tiles": 1, "intermediate_layers_indices": [0],
    "vision_output_dim": 96, "supported_aspect_ratios": [[1, 1]],
}  # fmt: skip
_DOTS3 = {"mlp_layer_types": ["dense"] * 3, "adapter_in_dim": 48, "adapter_out_dim": 48}
_FLORENCE2 = {
    "depths": [1] * 4, "patch_size": [7, 3, 3, 3], "embed_dim": [16] * 4, "num_heads": [2] * 4,
    "num_groups": [2] * 4, "mlp_ratio": 2.0,
}  # fmt: skip

_NOT_VIT = "has no list of pre-norm transformer blocks"
_SPANS_FRAMES = "its tokens span frames"
_VIDEO = "one video or image"
_WEIGHT = "which no part that is known makes use of"

#: every class of towers_today, and some more of the same kinds
ENTRIES = (
    # supported, by their names or by their shape
    Entry("siglip", "SiglipVisionModel"),
    Entry("siglip2", "Siglip2VisionModel", siglip2_rows, settings={"num_patches": SIDE**2}),
    Entry("clip", "CLIPVisionModel"),
    Entry("clip", "CLIPVisionModelWithProjection"),
    Entry("dinov2", "Dinov2Model"),
    Entry("dinov2", "Dinov2Backbone", settings={"reshape_hidden_states": False}),
    Entry("dinov2_with_registers", "Dinov2WithRegistersModel"),
    Entry("altclip", "AltCLIPVisionModel"),
    Entry("chinese_clip", "ChineseCLIPVisionModel"),
    Entry("metaclip_2", "MetaClip2VisionModel"),
    Entry("owlvit", "OwlViTVisionModel"),
    Entry("owlv2", "Owlv2VisionModel"),
    Entry("clipseg", "CLIPSegVisionModel"),
    Entry("kosmos2", "Kosmos2VisionModel"),
    Entry("git", "GitVisionModel"),
    Entry("radio", "RadioModel", settings={"mlp_ratio": 2.0, "max_img_size": 2 * SIZE}),
    Entry("tipsv2", "Tipsv2VisionModel"),
    Entry("idefics2", "Idefics2VisionTransformer"),
    Entry("idefics2", "Idefics2VisionTransformer", padded),
    Entry("granite_docling", "GraniteDoclingVisionModel", settings=_GRANITE),
    Entry("idefics3", "Idefics3VisionTransformer", padded),
    Entry("smolvlm", "SmolVLMVisionTransformer", padded),
    Entry("hunyuan_vl", "HunYuanVLVisionTransformer", rows(1)),
    Entry("hy_v4_vl", "HYV4VLVisionModel", rows(1)),
    Entry("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", video_rows),
    Entry("qwen2_5_vl", "Qwen2_5_VisionTransformerPretrainedModel", video_rows),
    Entry("qwen3_vl", "Qwen3VLVisionModel", video_rows, settings=_DEEPSTACK),
    Entry("qwen3_vl_moe", "Qwen3VLMoeVisionModel", video_rows, settings=_DEEPSTACK),
    Entry("qwen3_5", "Qwen3_5VisionModel", video_rows),
    Entry("qwen3_5_moe", "Qwen3_5MoeVisionModel", video_rows),
    Entry("qwen4_exp", "Qwen4ExpVisionModel", video_rows),
    Entry("qwen3_omni_moe", "Qwen3OmniMoeVisionEncoder", video_rows, settings=_DEEPSTACK),
    Entry("exaone4_5", "Exaone4_5_VisionModel", video_rows),
    Entry("glm4v", "Glm4vVisionModel", rows(2, 2, "hidden_states"), several=_VIDEO),
    Entry("glm4v_moe", "Glm4vMoeVisionModel", rows(2, 2, "hidden_states"), several=_VIDEO),
    # supported, with rotary positions from the tower
    Entry("dinov3_vit", "DINOv3ViTModel"),
    Entry("dinov3_vit", "DINOv3ViTModel", settings={"use_gated_mlp": True}),
    Entry("mlcd", "MLCDVisionModel"),
    Entry("gemma4", "Gemma4VisionModel", placed_rows, settings=_GEMMA4),
    Entry("gemma4", "Gemma4VisionModel", padded_places, settings=_GEMMA4),
    Entry("pixtral", "PixtralVisionModel"),
    Entry("minimax_m3_vl", "MiniMaxM3VLVisionModel", rows(2, 2)),
    Entry("sapiens2", "Sapiens2Model"),
    Entry("step3p7", "Step3p7VisionModel", settings={"mlp_ratio": 2.0}),
    # supported, with names, norms, scales or projections of their own
    Entry("internvl", "InternVLVisionModel"),
    Entry("qianfan_ocr", "QianfanOCRVisionModel"),
    Entry("internvl", "InternVLVisionModel", settings={"use_qk_norm": True}),
    Entry("vit", "ViTModel"),
    Entry("deit", "DeiTModel"),
    Entry("ijepa", "IJepaModel"),
    Entry("vit_mae", "ViTMAEModel", in_order, settings={"mask_ratio": 0.0}),
    Entry("vit_msn", "ViTMSNModel"),
    Entry("flava", "FlavaImageModel"),
    Entry("pixio", "PixioModel", since="5.24"),
    Entry("janus", "JanusVisionModel"),
    Entry("molmo2", "Molmo2VisionModel", batch_of_rows, settings=_MOLMO2),
    Entry("molmo2", "Molmo2VisionModel", batch_of_rows, settings=_GROUPED),
    Entry("ovis2", "Ovis2VisionModel"),
    Entry("aimv2", "Aimv2VisionModel"),
    Entry("blip", "BlipVisionModel"),
    Entry("blip_2", "Blip2VisionModel"),
    Entry("instructblip", "InstructBlipVisionModel"),
    Entry("instructblipvideo", "InstructBlipVideoVisionModel"),
    # supported, with the rows of all frames behind one another
    Entry("qwen2_5_omni", "Qwen2_5OmniVisionEncoder", video_rows),
    Entry("glm_ocr", "GlmOcrVisionModel", video_rows),
    Entry("glm_image", "GlmImageVisionModel", rows(2), several=_VIDEO),
    Entry("glm5_next", "Glm5NextVisionModel", video_rows),
    Entry("ernie4_5_vl_moe", _ERNIE, rows(2, 1, "hidden_states"), several=_VIDEO),
    Entry("dots3_note", "Dots3NoteVisionModel", rows(2), several=_VIDEO, settings=_DOTS3),
    Entry("video_llama_3", "VideoLlama3VisionModel", merged_rows, several=_VIDEO),
    Entry("kimi_k25", "Kimi_K25VisionModel", whole_patches, several=_VIDEO, settings=_KIMI),
    Entry("cohere_compass", "CohereCompassVisionModel", video_rows),
    Entry("cosmos3_edge", "Cosmos3EdgeVisionModel", rows(2), several=_VIDEO),
    Entry("muse_glimmer", "MuseGlimmerVisionModel", rows(2, 2), several=_VIDEO),
    Entry("muse_spark", "MuseSparkVisionModel", rows(2, 2), several=_VIDEO),
    Entry("paddleocr_vl", "PaddleOCRVisionModel", one_of_patches, several=_VIDEO, since="5.24"),
    # tokens that span frames
    Entry("vjepa2", "VJEPA2Model", clips, _SPANS_FRAMES, path="encoder", settings=_VJEPA2),
    Entry("vjepa2", "VJEPA2Model", clips, _SPANS_FRAMES, settings=_VJEPA2),
    Entry("videomae", "VideoMAEModel", videos, _SPANS_FRAMES, settings={"num_frames": 2}),
    Entry("timesformer", "TimesformerModel", videos, _SPANS_FRAMES, settings=_TIMESFORMER),
    Entry("vivit", "VivitModel", videos, _SPANS_FRAMES, settings=_VIVIT),
    Entry("videoprism", "VideoPrismVisionModel", clips, _SPANS_FRAMES, settings=_VIDEOPRISM),
    # a causal attention, a message between frames, layers that others look at
    Entry("phi4_multimodal", "Phi4MultimodalVisionModel", refused="is_causal=True"),
    Entry("x_clip", "XCLIPVisionModel", refused=_WEIGHT, settings={"num_frames": 1}),
    # supported, with a merger between two blocks
    Entry("minicpmv4_6", "MiniCPMV4_6VisionModel", strip, settings=_INSERTED),
    Entry("minicpmv4_7", "MiniCPMV4_7VisionModel", strip, settings=_INSERTED),
    Entry("minicpm_ocr", "MiniCPMOcrVisionModel", strip, settings=_INSERTED),
    # weights that no known part has, windows, or other kinds of towers
    Entry("beit", "BeitModel", refused=_WEIGHT),
    Entry("swin", "SwinModel", refused="attend in windows", settings=_SWIN),
    Entry("hiera", "HieraModel", refused="attend in windows", settings=_HIERA),
    Entry("sam3", "Sam3ViTModel", refused=_NOT_VIT),
    Entry("sam", "SamVisionModel", refused=_NOT_VIT, settings={"mlp_ratio": 2.0}),
    Entry("sam2", "Sam2VisionModel", refused=_NOT_VIT),
    Entry("convnext", "ConvNextModel", refused=_NOT_VIT, settings={"patch_size": 4}),
    Entry("groupvit", "GroupViTVisionModel", refused="3 stacks"),
    Entry("vitdet", "VitDetModel", refused=_NOT_VIT),
    Entry("vitpose_backbone", "VitPoseBackbone", refused=_NOT_VIT),
    Entry("lfm3_vl", "Lfm3VlVisionModel", refused=_NOT_VIT),
    Entry("llama4", "Llama4VisionModel", refused=_NOT_VIT),
    Entry("mllama", "MllamaVisionModel", tiles, _NOT_VIT, settings=_MLLAMA),
    Entry("got_ocr2", "GotOcr2VisionEncoder", refused=_NOT_VIT),
    Entry("florence2", "Florence2VisionBackbone", refused=_NOT_VIT, settings=_FLORENCE2),
)
