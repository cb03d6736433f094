# SPDX-License-Identifier: Apache-2.0
"""Transformer blocks as data: where the parts of each kind of block are.

A row names parts; it says nothing about what a block does with them. Whether the parts are all that
a block does is found out in the first frame (``cacher/self_check.py``), so that a row may be tried
on any tower.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import nn

#: what blocks are in: transformers has lists, timm has them run one after the other
LISTS = (nn.ModuleList, nn.Sequential)


@dataclass(frozen=True)
class BlockLayout:
    """Names of the parts of a block, as dotted paths; empty for a part that it does not have.

    The residual stream is x + scale1(attention(norm1(x))), then + scale2(mlp(norm2(.))). Queries
    and keys are rotated if the tower hands its blocks cosines and sines; the row need not say so.

    Attributes
    ----------
    norm1, norm2
        Norms in front of the attention and of the MLP.
    attention
        The attention, which knows its number of heads. It is not called.
    projections
        Of queries, keys and values inside the attention; one name if they are one product.
    norms
        Norms of queries, keys and perhaps values inside the attention, over each head or over
        all channels, whichever their weight fits.
    output
        The output projection inside the attention.
    mlp, mlp_output
        The MLP; or its first half with the activation, and its second.
    scale1, scale2
        What each branch goes through before it is added: layer scale, which may be a parameter,
        or the second norm of a sandwich.
    rotary_axes
        Into how many parts a head is cut before each is rotated by itself.
    """

    norm1: str
    norm2: str
    attention: str
    projections: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    norms: tuple[str, ...] = ()
    output: str = "o_proj"
    mlp: str = "mlp"
    mlp_output: str = ""
    scale1: str = ""
    scale2: str = ""
    rotary_axes: int = 1

    @property
    def paths(self) -> Mapping[str, tuple[str, ...]]:
        """Names of the modules from the block down to each part."""
        fused = len(self.projections) == 1
        inside = dict(zip(("qkv",) if fused else ("query", "key", "value"), self.projections))  # noqa: B905
        inside |= dict(zip(("query_norm", "key_norm", "value_norm"), self.norms, strict=False))
        inside["output"] = self.output
        paths = {part: f"{self.attention}.{name}" for part, name in inside.items()}
        for part in ("norm1", "norm2", "mlp", "mlp_output", "scale1", "scale2"):
            paths[part] = getattr(self, part)
        return {part: tuple(path.split(".")) for part, path in paths.items() if path}

    def missing(self, layer: nn.Module) -> list[str]:
        """Paths of these parts that a block does not have."""
        return [".".join(p) for p in self.paths.values() if part_at(layer, p) is None]

    def leftover(self, layer: nn.Module) -> Iterator[str]:
        """Names of the weights of a block that are in none of its parts."""
        prefixes = tuple(".".join(path) for path in self.paths.values())
        for names in (layer.named_parameters(), layer.named_buffers()):
            for name, _ in names:
                if not any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes):
                    yield name


def part_at(layer: nn.Module, path: tuple[str, ...]) -> nn.Module | nn.Parameter | None:
    """Return the module or parameter at a path, or None."""
    module = layer
    for step in path[:-1]:
        inner = module._modules.get(step)
        if inner is None:
            return None
        module = inner
    found = module._modules.get(path[-1])
    return module._parameters.get(path[-1]) if found is None else found


_SIGLIP = BlockLayout("layer_norm1", "layer_norm2", "self_attn", output="out_proj")
_DINO = BlockLayout("norm1", "norm2", "attention", scale1="layer_scale1", scale2="layer_scale2")
_VIT = BlockLayout("layernorm_before", "layernorm_after", "attention")
QWEN_VL = BlockLayout("norm1", "norm2", "attn", ("qkv",), output="proj")
_NESTED = ("attention.query", "attention.key", "attention.value")
_QK = ("q_norm", "k_norm")
_SCALED = replace(_VIT, scale1="lambda_1", scale2="lambda_2")

#: the rows; the first that fits and leaves no weight over is taken
LAYOUTS: tuple[BlockLayout, ...] = (
    _SIGLIP,  # CLIP and its relatives, Idefics, Gemma 3, VideoLLaMA 3
    replace(_SIGLIP, output="o_proj"),  # Molmo2, HunYuan-VL
    replace(_SIGLIP, output="projection_layer", norms=_QK),  # Janus
    replace(_SIGLIP, projections=("qkv",), output="projection"),  # BLIP
    _DINO,  # DINOv2 and DINOv3, RADIO
    replace(_DINO, projections=_NESTED, output="output.dense"),  # DINOv2 before transformers 5.18
    replace(_DINO, norms=_QK),  # Sapiens 2
    _VIT,  # DeiT, I-JEPA, MAE, too
    replace(_VIT, projections=_NESTED, output="output.dense", mlp="intermediate",
            mlp_output="output.dense"),  # the same before transformers 5.18
    replace(_SCALED, norms=_QK, output="projection_layer"),  # InternVL
    replace(_SCALED, attention="self_attn", output="out_proj"),  # Step3.7
    QWEN_VL,  # Qwen-VL, GLM-4V
    replace(QWEN_VL, norms=_QK),  # GLM-OCR
    replace(QWEN_VL, projections=("q", "k", "v")),  # Qwen2.5-Omni
    replace(QWEN_VL, projections=("q_proj", "k_proj", "v_proj")),  # Kimi-K2.5
    replace(QWEN_VL, scale1="ls1", scale2="ls2"),  # ViTs of timm
    replace(QWEN_VL, scale1="gamma_1", scale2="gamma_2"),  # Perception Encoder, of timm
    BlockLayout("rms_norm1", "rms_norm2", "attention", output="out_proj", mlp="ffn"),  # AIMv2
    BlockLayout("attention_norm", "ffn_norm", "attention", mlp="feed_forward"),  # Pixtral
    BlockLayout(
        "input_layernorm", "pre_feedforward_layernorm", "self_attn", norms=(*_QK, "v_norm"),
        scale1="post_attention_layernorm", scale2="post_feedforward_layernorm", rotary_axes=2,
    ),  # Gemma 4
)  # fmt: skip


def layout_of(layer: nn.Module) -> BlockLayout | None:
    """Choose the row of a block; None if it lacks a part of each."""
    fitting = [layout for layout in LAYOUTS if not layout.missing(layer)]
    whole = (layout for layout in fitting if not any(layout.leftover(layer)))
    return next(whole, fitting[0] if fitting else None)


def missing_parts(layer: nn.Module) -> list[str]:
    """Paths of the parts that a block lacks of the row that is nearest to fitting it."""
    return min((layout.missing(layer) for layout in LAYOUTS), key=len)


def is_packed(layer: nn.Module) -> bool:
    """Whether a block takes the rows (M, C) of all frames, and says where each frame ends."""
    return "cu_seqlens" in inspect.signature(type(layer).forward).parameters
