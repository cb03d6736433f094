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

__all__ = [
    "APPROXIMATE",
    "EXACT",
    "REFUSED",
    "SUPPORTED",
    "TOWER_FAMILIES",
    "TowerFamily",
    "refuse_family",
]

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
    """

    name: str
    models: tuple[str, ...]
    support: str = EXACT
    note: str = ""


_ONE_PICTURE = "one picture a call, since all pictures of a call lie in one row"
_ONE_VIDEO = "one video or image a call, or one for each stream"
_SPANS_FRAMES = "its tokens span frames, so that no token belongs to one frame alone"
_WINDOWS = "its blocks attend in windows or pool between stages"
_MERGED = "a merger between two of its blocks makes fewer tokens of them"

TOWER_FAMILIES = (
    TowerFamily("Qwen2-VL, Qwen2.5-VL", ("qwen2_vl", "qwen2_5_vl"), EXACT, _ONE_VIDEO),
    TowerFamily("Qwen3-VL", ("qwen3_vl", "qwen3_vl_moe"), EXACT, _ONE_VIDEO),
    TowerFamily("Qwen3.5, Qwen4", ("qwen3_5", "qwen3_5_moe", "qwen4_exp"), EXACT, _ONE_VIDEO),
    TowerFamily("Qwen-Omni", ("qwen2_5_omni", "qwen3_omni_moe"), EXACT, _ONE_VIDEO),
    TowerFamily("GLM-4V", ("glm4v", "glm4v_moe"), EXACT, _ONE_VIDEO),
    TowerFamily("GLM-OCR, GLM-5", ("glm_ocr", "glm5_next"), EXACT, _ONE_VIDEO),
    TowerFamily("EXAONE 4.5", ("exaone4_5",), EXACT, _ONE_VIDEO),
    TowerFamily("VideoLLaMA 3", ("video_llama_3",), EXACT, _ONE_VIDEO),
    TowerFamily("SigLIP", ("siglip", "siglip2")),
    TowerFamily("CLIP", ("clip", "altclip", "chinese_clip", "metaclip_2", "clipseg", "kosmos2")),
    TowerFamily("OWL-ViT", ("owlvit", "owlv2")),
    TowerFamily("GIT", ("git",)),
    TowerFamily("DINOv2", ("dinov2", "dinov2_with_registers")),
    TowerFamily("DINOv3", ("dinov3_vit",)),
    TowerFamily("RADIO", ("radio",)),
    TowerFamily("TIPSv2", ("tipsv2",)),
    TowerFamily("InternVL", ("internvl",)),
    TowerFamily("ViT", ("vit", "deit", "vit_msn", "ijepa")),
    TowerFamily("ViT-MAE", ("vit_mae",), EXACT, "with mask_ratio 0 and noise of no effect"),
    TowerFamily("MLCD", ("mlcd",)),
    TowerFamily("SmolVLM, Idefics", ("smolvlm", "idefics2", "idefics3")),
    TowerFamily("Gemma 4", ("gemma4",), EXACT, "pictures of a call share their patch positions"),
    TowerFamily("Molmo2", ("molmo2",)),
    TowerFamily("Pixtral", ("pixtral",), EXACT, _ONE_PICTURE),
    TowerFamily("HunYuan-VL", ("hunyuan_vl", "hy_v4_vl"), EXACT, _ONE_PICTURE),
    TowerFamily("MiniCPM-V", ("minicpmv4_6", "minicpmv4_7", "minicpm_ocr"), REFUSED, _MERGED),
    TowerFamily("V-JEPA 2", ("vjepa2",), REFUSED, _SPANS_FRAMES),
    TowerFamily("VideoMAE", ("videomae",), REFUSED, _SPANS_FRAMES),
    TowerFamily("TimeSformer, ViViT", ("timesformer", "vivit"), REFUSED, _SPANS_FRAMES),
    TowerFamily("VideoPrism", ("videoprism",), REFUSED, _SPANS_FRAMES),
    TowerFamily("Swin, Hiera", ("swin", "hiera"), REFUSED, _WINDOWS),
)

SUPPORTED = ", ".join(family.name for family in TOWER_FAMILIES if family.support != REFUSED)


def refuse_family(root: nn.Module) -> None:
    """Raise UnsupportedModelError if a tower is of a family that is refused by its name."""
    for family in TOWER_FAMILIES:
        homes = tuple(f"transformers.models.{model}." for model in family.models)
        if family.support == REFUSED and type(root).__module__.startswith(homes):
            raise UnsupportedModelError(
                f"attach_cacher: {type(root).__name__} is not a supported tower: {family.note}"
            )
