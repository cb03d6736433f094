# SPDX-License-Identifier: Apache-2.0
"""Pre-norm vision transformers: SigLIP, SigLIP2, CLIP, DINOv2, LLaVA-NeXT's own SigLIP.

Blocks are recognised by what they contain and not by their class or path, which differ between
releases of transformers (``vision_model.encoder.layers``, ``encoder.layers``, ``encoder.layer``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from stc_video.errors import UnsupportedModelError
from stc_video.towers.attention import attention
from stc_video.towers.block import Part
from stc_video.towers.fused import feed_forward
from stc_video.towers.observers import show_attention
from stc_video.versions import TOWERS_FROM, require_transformers

_NORM1 = ("layer_norm1", "norm1")
_NORM2 = ("layer_norm2", "norm2")
_ATTENTION = ("self_attn", "attention", "attn")
_QUERY, _KEY, _VALUE = ("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")
_OUTPUT = ("out_proj", "o_proj", "proj")
_HEADS = ("num_heads", "num_attention_heads")

SUPPORTED = (
    "vision towers of transformers' SigLIP, SigLIP2, CLIP and DINOv2 (with or without registers) "
    "and LLaVA-NeXT's SigLIP"
)


@dataclass(frozen=True)
class PreNormBlock:
    """One transformer block, by its parts.

    The residual stream is x + attention(norm1(x)), then + mlp(norm2(.)); DINOv2 scales both
    branches (LayerScale). Parts are called as modules, never re-implemented, which absorbs every
    difference between activations, gated MLPs and names. They are looked up when they are called.

    ``project_together``, if there is one, makes query, key and value of the same rows at once, or
    returns None where they must be called as modules.
    """

    layer: nn.Module
    paths: Mapping[str, tuple[str, ...]] = field(hash=False)
    heads: int
    project_together: Callable[[Tensor], Sequence[Tensor] | None] | None = None

    norm1 = Part()
    norm2 = Part()
    query = Part()
    key = Part()
    value = Part()
    output = Part()
    mlp = Part()
    scale1 = Part()
    scale2 = Part()

    @classmethod
    def of(cls, layer: nn.Module) -> PreNormBlock:
        """Take a layer apart; raises UnsupportedModelError naming the part that is missing."""
        name = _child(layer, _ATTENTION)
        attention = getattr(layer, name)
        # DINOv2 before transformers 5.18 nests: attention.attention.{query,key,value}.
        inner = getattr(attention, "attention", attention)
        nested = (name,) if inner is attention else (name, "attention")
        dense = getattr(getattr(attention, "output", None), "dense", None)
        is_dense = isinstance(dense, nn.Module)
        paths = {
            "norm1": (_child(layer, _NORM1),),
            "norm2": (_child(layer, _NORM2),),
            "query": (*nested, _child(inner, _QUERY)),
            "key": (*nested, _child(inner, _KEY)),
            "value": (*nested, _child(inner, _VALUE)),
            "output": (name, *(("output", "dense") if is_dense else (_child(attention, _OUTPUT),))),
            "mlp": (_child(layer, ("mlp",)),),
        }
        for part, scale in (("scale1", "layer_scale1"), ("scale2", "layer_scale2")):
            if isinstance(getattr(layer, scale, None), nn.Module):
                paths[part] = (scale,)
        return cls(layer, paths, _heads(inner))

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        """The modules of it that are called."""
        every = (
            self.norm1, self.norm2, self.query, self.key, self.value, self.output, self.mlp,
            self.scale1, self.scale2,
        )  # fmt: skip
        return tuple(part for part in every if part is not None)

    @property
    def returns_tuple(self) -> bool:
        """Whether this release's class wraps its output in a tuple.

        True exactly for the classes whose forward still has ``output_attentions``.
        """
        return "output_attentions" in inspect.signature(type(self.layer).forward).parameters

    @property
    def channels(self) -> int:
        """Width of the residual stream."""
        # The weight of a quantised layer may have any shape.
        return cast(int, self.query.in_features)

    def project(
        self, normed: Tensor, indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of normalised rows, each (B, K, C)."""
        together = None if self.project_together is None else self.project_together(normed)
        if together is not None:
            query, key, value = together
            return query, key, value
        return self.query(normed), self.key(normed), self.value(normed)

    def project_query(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Queries alone."""
        return cast(Tensor, self.query(normed))

    def project_key(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Keys alone."""
        return cast(Tensor, self.key(normed))

    def project_value(self, normed: Tensor, indices: Tensor | None = None) -> Tensor:
        """Values alone."""
        return cast(Tensor, self.value(normed))

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Attention branch of some rows: query (B, K, C), key and value (B, N, C) -> (B, K, C).

        ``mask`` is None or broadcastable to (B, heads, K, N). ``indices`` (B, K) are the rows'
        indices in the frame, which blocks with positions of their own need.
        """
        return self.attention_branch(self.attend(query, key, value, mask, indices))

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        indices: Tensor | None = None,
    ) -> Tensor:
        """Values mixed by attention, in front of the output projection."""
        show_attention(self.layer, query, key)
        return attention(query, key, value, self.heads, mask)

    def attention_branch(self, mixed: Tensor) -> Tensor:
        """Project mixed values (B, K, C) to what is added to the residual stream."""
        branch = self.output(mixed)
        return cast(Tensor, branch if self.scale1 is None else self.scale1(branch))

    def feed_forward(self, x: Tensor) -> Tensor:
        """MLP branch of some rows of the residual stream, (B, K, C) -> (B, K, C)."""
        return self.mlp_branch(self.norm2(x))

    def mlp_branch(self, normed: Tensor) -> Tensor:
        """MLP branch of normalised rows, (B, K, C) -> (B, K, C)."""
        branch = feed_forward(self.mlp, normed)
        return cast(Tensor, branch if self.scale2 is None else self.scale2(branch))

    def mlp_operations(self) -> int:
        """Multiply-adds of the MLP for one token."""
        linears = (m for m in self.mlp.modules() if isinstance(m, nn.Linear))
        return sum(linear.weight.numel() for linear in linears)


@dataclass(frozen=True)
class PreNormTower:
    """A vision tower and the blocks found in it.

    Attributes
    ----------
    root
        The module that was given.
    ancestors
        ``root`` and the modules between it and the blocks, outermost first.
    blocks
        The transformer blocks, in order.
    path
        Name of the list of blocks inside ``root``.
    prefix_tokens
        Class token and registers at the start of the sequence.
    """

    root: nn.Module
    ancestors: tuple[nn.Module, ...]
    blocks: tuple[PreNormBlock, ...]
    path: str
    prefix_tokens: int

    @classmethod
    def of(cls, root: nn.Module) -> PreNormTower:
        """Find the blocks of a tower.

        Raises
        ------
        UnsupportedModelError
            If there is no list of pre-norm blocks in it, or more than one, or if it is a model of
            a release of transformers that is not supported.
        """
        if not isinstance(root, nn.Module):
            raise UnsupportedModelError(
                f"attach_cacher: tower must be a torch.nn.Module, got {type(root).__name__}"
            )
        if type(root).__module__.startswith("transformers."):
            require_transformers(TOWERS_FROM, "attach_cacher")
        stacks = list(_block_lists(root))
        if len(stacks) != 1:
            raise UnsupportedModelError(_not_one_tower(root, [path for path, _ in stacks]))
        path, layers = stacks[0]
        devices = {str(parameter.device) for parameter in layers.parameters()}
        if len(devices) > 1:
            raise UnsupportedModelError(
                f"attach_cacher: the blocks of {type(root).__name__} must be on one device, "
                f"got {', '.join(sorted(devices))}"
            )
        return cls(
            root=root,
            ancestors=tuple(_ancestors(root, path)),
            blocks=tuple(PreNormBlock.of(layer) for layer in layers),
            path=path,
            prefix_tokens=count_prefix_tokens(root),
        )

    @property
    def cached_modules(self) -> list[nn.Module]:
        """The modules whose results a cacher keeps."""
        return [block.layer for block in self.blocks]

    def rescan(self) -> PreNormTower:
        """Look for the blocks and their parts again, after somebody put others in their place."""
        return PreNormTower.of(self.root)


def find_tower(root: nn.Module, caller: str) -> PreNormTower:
    """Find the blocks of a tower for another function than ``attach_cacher``, named in errors."""
    try:
        return PreNormTower.of(root)
    except UnsupportedModelError as error:
        reason = str(error).removeprefix("attach_cacher: ")
        raise UnsupportedModelError(f"{caller}: {reason}") from None


def _block_lists(root: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, module in root.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and _is_pre_norm(module[0]):
            yield name, module


def _is_pre_norm(layer: nn.Module) -> bool:
    """Whether a module looks like a vision block.

    The names of the norms tell it from a language model's decoder layer (``input_layernorm``).
    A fused ``qkv`` projection belongs to another family of towers.
    """
    has_parts = all(
        any(isinstance(getattr(layer, name, None), nn.Module) for name in names)
        for names in (_NORM1, _ATTENTION, ("mlp",))
    )
    attention = next((getattr(layer, name) for name in _ATTENTION if hasattr(layer, name)), None)
    return has_parts and not hasattr(attention, "qkv")


def _not_one_tower(root: nn.Module, paths: list[str]) -> str:
    name = type(root).__name__
    if not paths:
        return (
            f"attach_cacher: {name} is not a supported tower: it has no list of pre-norm "
            f"transformer blocks; supported are {SUPPORTED}"
        )
    towers = " or ".join(f"model.{tower}" for tower in _each_with_one(paths))
    return (
        f"attach_cacher: {name} holds {len(paths)} stacks of transformer blocks "
        f"({', '.join(paths)}); pass the vision tower itself: {towers}"
    )


def _each_with_one(paths: list[str]) -> list[str]:
    """Name for each stack of blocks the outermost module that holds no other one."""
    towers = []
    for path in paths:
        names = path.split(".")
        heads = [".".join(names[:count]) for count in range(1, len(names) + 1)]
        alone = (h for h in heads if sum((p + ".").startswith(h + ".") for p in paths) == 1)
        towers.append(next(alone))
    return towers


def _ancestors(root: nn.Module, path: str) -> Iterator[nn.Module]:
    """Modules from the root to the one that owns the list of blocks at ``path``."""
    yield root
    names = path.split(".")[:-1]
    for depth in range(len(names)):
        yield root.get_submodule(".".join(names[: depth + 1]))


def count_prefix_tokens(root: nn.Module) -> int:
    """Class token and registers, read off the parameters of the embeddings."""
    count = 0
    for name, parameter in root.named_parameters():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("class_embedding", "cls_token"):
            count += 1
        elif leaf == "register_tokens":
            count += parameter.shape[-2]
    return count


def _child(module: nn.Module, names: tuple[str, ...]) -> str:
    for name in names:
        if isinstance(getattr(module, name, None), nn.Module):
            return name
    raise UnsupportedModelError(
        f"attach_cacher: {type(module).__name__} is not a supported block: it has none of "
        f"{', '.join(names)}; supported are {SUPPORTED}"
    )


def _heads(attention: nn.Module) -> int:
    for name in _HEADS:
        if isinstance(heads := getattr(attention, name, None), int):
            return heads
    raise UnsupportedModelError(
        f"attach_cacher: {type(attention).__name__} does not tell its number of heads "
        f"({' or '.join(_HEADS)})"
    )
