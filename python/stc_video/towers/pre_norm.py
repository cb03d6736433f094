# SPDX-License-Identifier: Apache-2.0
"""Towers of batches of frames (F, N, C): SigLIP, CLIP, DINO, ViT, InternVL and many more.

Blocks are recognised by what they contain and not by their class or path, which differ between
releases of transformers (``vision_model.encoder.layers``, ``encoder.layers``, ``encoder.layer``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from stc_video.errors import UnsupportedModelError
from stc_video.towers.block import Block
from stc_video.towers.families import SUPPORTED, refuse_family
from stc_video.towers.layouts import LISTS, is_packed, layout_of
from stc_video.towers.positions import FrameGeometry
from stc_video.versions import TOWERS_FROM, require_transformers


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
    geometry
        Of the frames under way; the blocks look at it.
    depth
        How many blocks there are; those behind a merger are not among ``blocks`` and run as they
        are.
    """

    root: nn.Module
    ancestors: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]
    path: str
    prefix_tokens: int
    geometry: FrameGeometry
    depth: int

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
        refuse_family(root)
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
        geometry, ancestors = FrameGeometry(keeps_tables=True), tuple(_ancestors(root, path))
        in_front = list(layers)[: _until_merger(ancestors)]
        return cls(
            root=root,
            ancestors=ancestors,
            blocks=tuple(Block.of(layer, geometry) for layer in in_front),
            path=path,
            prefix_tokens=count_prefix_tokens(root),
            geometry=geometry,
            depth=len(layers),
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
        tower = PreNormTower.of(root)
    except UnsupportedModelError as error:
        reason = str(error).removeprefix("attach_cacher: ")
        raise UnsupportedModelError(f"{caller}: {reason}") from None
    if tower.depth != len(tower.blocks):
        raise UnsupportedModelError(
            f"{caller}: {type(root).__name__} is not a supported tower: a merger behind block "
            f"{len(tower.blocks) - 1} of {tower.depth} makes fewer tokens of them"
        )
    return tower


def _until_merger(ancestors: Sequence[nn.Module]) -> int | None:
    """How many blocks are in front of a merger between two of them (MiniCPM-V); None for all."""
    configs = (getattr(module, "config", None) for module in ancestors)
    numbers = (getattr(config, "insert_layer_id", None) for config in configs)
    return next((number + 1 for number in numbers if number is not None and number >= 0), None)


def _block_lists(root: nn.Module) -> Iterator[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Lists of blocks, by name; those of language models, whose attention is causal, if alone."""
    stacks = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, LISTS) and len(module) and _is_block(module[0])
    ]
    seeing = [stack for stack in stacks if not _is_causal(stack[1][0])]
    yield from seeing or stacks


def _is_block(layer: nn.Module) -> bool:
    """Whether a module is a block of a batch of frames; packed rows are for ``varlen.py``."""
    return layout_of(layer) is not None and not is_packed(layer)


def _is_causal(layer: nn.Module) -> bool:
    return any(getattr(module, "is_causal", False) is True for module in layer.modules())


def _not_one_tower(root: nn.Module, paths: list[str]) -> str:
    name = type(root).__name__
    if not paths:
        return (
            f"attach_cacher: {name} is not a supported tower: it has no list of pre-norm "
            f"transformer blocks; supported are {SUPPORTED} and others"
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


#: what is put in front of the patches: parameters of one token, and of as many as they have rows
_SINGLE = ("class_embedding", "cls_token", "distillation_token")
_SEVERAL = ("register_tokens", "reg_token")
#: in the names of modules behind the blocks, which may have tokens of their own (AIMv2's head)
_BEHIND = ("head", "pool", "decoder")


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
        *path, leaf = name.split(".")
        if any(part in step for step in path for part in _BEHIND):
            continue
        if leaf in _SINGLE:
            count += 1
        elif leaf in _SEVERAL:
            count += parameter.shape[-2]
    return count
