# SPDX-License-Identifier: Apache-2.0
"""Modules of a block that are not called when its parts are, and so must not do anything.

The attention module itself is such a one: its projections are called, it is not. A hook or another
forward on it, or an attention function that somebody registered, would be lost without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from stc_video.errors import UnsupportedModelError
from stc_video.towers.block import Block

#: what transformers calls its own implementations of attention
_KNOWN_ATTENTION = (
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
)


@dataclass(frozen=True)
class Bypassed:
    """The modules of a tower's blocks that are not called.

    Attributes
    ----------
    modules
        All of them, each with its name in its block.
    attentions
        Those of them that have a config, which says how they attend.
    caller
        Function that errors name.
    """

    modules: tuple[tuple[str, nn.Module], ...]
    attentions: tuple[nn.Module, ...]
    caller: str

    @classmethod
    def of(cls, blocks: Sequence[Block], caller: str = "attach_cacher") -> Bypassed:
        """Find them.

        Raises
        ------
        UnsupportedModelError
            If one of them has weights of its own, a hook, another forward than its class's, or
            attends in a way that transformers does not know.
        """
        modules = []
        for number, block in enumerate(blocks):
            ours = {inner for part in block.parts for inner in part.modules()}
            uncalled = [(n, m) for n, m in block.layer.named_modules() if m not in ours]
            _refuse_weights(number, block, uncalled, caller)
            modules += [(f"{number}.{name}", module) for name, module in uncalled if name]
        with_config = [module for _, module in modules if hasattr(module, "config")]
        bypassed = cls(tuple(modules), tuple(with_config), caller)
        bypassed.check()
        bypassed.check_attention()
        return bypassed

    @property
    def attends_by(self) -> str | None:
        """Name of the implementation of attention that the config asks for."""
        config = self.attentions[0].config if self.attentions else None
        return getattr(config, "_attn_implementation", None)

    def check(self) -> None:
        """Raise UnsupportedModelError if somebody has put a hook or a forward on one of them."""
        for name, module in self.modules:
            hooks = module._forward_hooks or module._forward_pre_hooks
            if (hooks or "forward" in module.__dict__) and (what := _put_on(module)):
                raise UnsupportedModelError(
                    f"{self.caller}: {type(module).__name__} (block {name}) has {what}, which "
                    "would never run: its projections are called, and attention is computed "
                    "here; take it off, or put it on the block"
                )

    def check_attention(self) -> None:
        """Raise UnsupportedModelError if the config asks for an attention of somebody's own."""
        for attention in self.attentions:
            _refuse_foreign_attention(attention, self.caller)


def is_foreign(hook: Any) -> bool:
    """Whether a hook is none of those by which transformers collects outputs."""
    return "output_capturing" not in getattr(hook, "__module__", "")


def _put_on(module: nn.Module) -> str:
    """Say what somebody has put on a module; empty if nothing."""
    if any(is_foreign(hook) for hook in module._forward_hooks.values()):
        return "a forward hook"
    if module._forward_pre_hooks:
        return "a forward pre-hook"
    # accelerate's hooks and transformers 4.57 leave the class's own forward on the instance.
    slot = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
    forward = module.__dict__.get(slot)
    if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
        return "a forward of its own"
    return ""


def _refuse_weights(
    number: int, block: Block, uncalled: Sequence[tuple[str, nn.Module]], caller: str
) -> None:
    ours = {id(weight) for weight in block.weights}
    for name, module in uncalled:
        for weight, tensor in _tensors_of(module):
            if id(tensor) in ours:
                continue
            path = f"{name}.{weight}" if name else weight
            raise UnsupportedModelError(
                f"{caller}: {type(block.layer).__name__} (block {number}) is not a supported "
                f"block: it has {path}, which no part that is known makes use of"
            )


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters(recurse=False)
    yield from module.named_buffers(recurse=False)


def _refuse_foreign_attention(attention: nn.Module, caller: str) -> None:
    name = getattr(attention.config, "_attn_implementation", None)
    if name is None or _is_known(name):
        return
    raise UnsupportedModelError(
        f"{caller}: {type(attention).__name__} attends by {name!r}, which is not one of "
        "transformers' own implementations and would never run: attention is computed here; "
        "call set_attn_implementation('sdpa') first"
    )


def _is_known(name: str) -> bool:
    try:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as registered
    except ImportError:  # before 4.48 there was no registry
        return name in _KNOWN_ATTENTION
    function = registered.get(name)
    if function is None:
        return name == "eager"
    function = getattr(function, "func", function)  # of a partial
    return str(getattr(function, "__module__", "")).startswith("transformers.")
