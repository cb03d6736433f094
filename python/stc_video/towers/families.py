# SPDX-License-Identifier: Apache-2.0
"""The families of vision towers that are known, and what is supported of each.

The table is for people and for ``stc models``: a tower that is not in it is supported, too, if its
blocks fit a row of ``layouts.py`` and its first frame passes the check. Only a family that is
refused here is refused by its name, because the reason does not show in a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from stc_video.errors import UnsupportedModelError

#: dense, unchanged and wholly changed frames are the stock tower's, up to rounding
EXACT = "exact"
#: also these differ from the stock tower's, as ``note`` says
APPROXIMATE = "approximate"
#: refused in one sentence, before anything is patched or with everything taken off again
REFUSED = "refused"


@dataclass(frozen=True)
class TowerFamily:
    """A family of vision towers.

    Attributes
    ----------
    name
        What people call it.
    models
        Its modules in ``transformers.models``, which are also its ``model_type``.
    support
        ``EXACT``, ``APPROXIMATE`` or ``REFUSED``.
    note
        Why it is refused, or what is refused of it; a clause in words.
    by_name
        Whether it is refused by its name, because the reason does not show in a block.
    in_rows
        Whether it takes all pictures of a call as rows behind one another.
    """

    name: str
    models: tuple[str, ...]
    support: str = EXACT
    note: str = ""
    by_name: bool = False
    in_rows: bool = False


_ONE_VIDEO = "one video or image a call, or one for each stream"
_SPANS_FRAMES = "its tokens span frames, so that no token belongs to one frame alone"
_WINDOWS = "its blocks attend in windows or pool between stages"
_MERGED = "blocks behind the merger between two of them run as they are"
_IN_ORDER = "with mask_ratio=0 and noise given, else its tokens are shuffled"
_OTHER_WEIGHTS = "its blocks have weights that no row of the table names"
_NO_BLOCKS = "it has no list of blocks that fit a row of the table"


def _exact(name: str, *models: str, note: str = "") -> TowerFamily:
    return TowerFamily(name, models, EXACT, note)


def _in_rows(name: str, *models: str, note: str = _ONE_VIDEO) -> TowerFamily:
    return TowerFamily(name, models, EXACT, note, in_rows=True)


def _refused(name: str, *models: str, note: str, by_name: bool = False) -> TowerFamily:
    return TowerFamily(name, models, REFUSED, note, by_name)


TOWER_FAMILIES = (
    _in_rows("Qwen2-VL", "qwen2_vl", "qwen2_5_vl"),
    _in_rows("Qwen3-VL", "qwen3_vl", "qwen3_vl_moe"),
    _in_rows("Qwen3.5", "qwen3_5", "qwen3_5_moe", "qwen4_exp"),
    _in_rows("Qwen-Omni", "qwen2_5_omni", "qwen3_omni_moe"),
    _in_rows("GLM-4V", "glm4v", "glm4v_moe", "glm_ocr", "glm_image", "glm5_next"),
    _in_rows("EXAONE 4.5", "exaone4_5"),
    _in_rows("ERNIE 4.5 VL", "ernie4_5_vl_moe"),
    _in_rows("VideoLLaMA 3", "video_llama_3"),
    _in_rows("Kimi-K2.5", "kimi_k25"),
    _in_rows("Cohere Compass", "cohere_compass"),
    _in_rows("Muse", "muse_glimmer", "muse_spark"),
    _in_rows("Cosmos3-Edge", "cosmos3_edge"),
    _in_rows("PaddleOCR-VL", "paddleocr_vl"),
    _in_rows("dots3", "dots3_note"),
    _exact("SigLIP", "siglip", "siglip2"),
    _exact("CLIP", "clip", "altclip", "chinese_clip", "metaclip_2", "clipseg", "kosmos2", "git"),
    _exact("OWL-ViT", "owlvit", "owlv2"),
    _exact("SmolVLM", "smolvlm", "idefics2", "idefics3"),
    _exact("GraniteDocling", "granite_docling"),
    _exact("DINOv2", "dinov2", "dinov2_with_registers"),
    _exact("DINOv3", "dinov3_vit"),
    _exact("RADIO", "radio"),
    _exact("TIPSv2", "tipsv2"),
    _exact("Sapiens 2", "sapiens2"),
    _exact("InternVL", "internvl", "qianfan_ocr"),
    _exact("ViT", "vit", "deit", "vit_msn", "ijepa", "flava", "pixio"),
    _exact("ViT-MAE", "vit_mae", note=_IN_ORDER),
    _exact("MLCD", "mlcd"),
    _exact("Gemma 4", "gemma4", note="the pictures of a call have the same patch positions"),
    _exact("Molmo2", "molmo2"),
    _exact("Janus", "janus"),
    _exact("AIMv2", "aimv2", "ovis2"),
    _exact("BLIP", "blip", "blip_2", "instructblip", "instructblipvideo"),
    _exact("Step3.7", "step3p7"),
    _exact("Perception Encoder", "timm_wrapper", note="and plain ViTs of timm; needs timm"),
    _in_rows("Pixtral", "pixtral", note=""),
    _in_rows("HunYuan-VL", "hunyuan_vl", "hy_v4_vl", note=""),
    _in_rows("MiniMax-M3", "minimax_m3_vl", note=""),
    _in_rows("MiniCPM-V", "minicpmv4_6", "minicpmv4_7", "minicpm_ocr", note=_MERGED),
    _refused("V-JEPA 2", "vjepa2", note=_SPANS_FRAMES, by_name=True),
    _refused("VideoMAE", "videomae", note=_SPANS_FRAMES, by_name=True),
    _refused("ViViT", "vivit", "timesformer", "videoprism", note=_SPANS_FRAMES, by_name=True),
    _refused("Swin", "swin", "hiera", note=_WINDOWS, by_name=True),
    _refused("Phi-4-MM", "phi4_multimodal", note="its attention is causal"),
    _refused("X-CLIP", "x_clip", note=_OTHER_WEIGHTS),
    _refused("BEiT", "beit", note=_OTHER_WEIGHTS),
    _refused("GroupViT", "groupvit", note="it has several stacks of blocks"),
    _refused("SAM", "sam", "sam2", "sam3", "got_ocr2", note=_NO_BLOCKS),
    _refused("Llama 4", "llama4", "mllama", note=_NO_BLOCKS),
    _refused("ViTDet", "vitdet", "vitpose_backbone", "convnext", "florence2", note=_NO_BLOCKS),
    _refused("LFM3-VL", "lfm3_vl", note=_NO_BLOCKS),
)

SUPPORTED = ", ".join(family.name for family in TOWER_FAMILIES if family.support != REFUSED)


def refuse_family(root: nn.Module) -> None:
    """Raise UnsupportedModelError if a tower is of a family that is refused by its name."""
    for family in TOWER_FAMILIES:
        homes = tuple(f"transformers.models.{model}." for model in family.models)
        if family.by_name and type(root).__module__.startswith(homes):
            raise UnsupportedModelError(
                f"attach_cacher: {type(root).__name__} is not a supported tower: {family.note}"
            )
