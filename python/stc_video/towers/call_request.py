# SPDX-License-Identifier: Apache-2.0
"""The request of a call of the tower, noticed before any layer runs.

The layers cannot see whether hidden states are wanted, nor SigLIP2's grid. Forward pre-hooks on
the modules above them can, whatever the release of transformers, and an error raised there leaves
no half-finished call behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from stc_video.towers.block import Tower
from stc_video.towers.bypassed import is_foreign
from stc_video.towers.patching import PatchedHook
from stc_video.towers.plain import parameter_names

#: sizes of pictures, in patches
Grids = tuple[tuple[int, ...], ...]


@dataclass
class TowerRequest:
    """The outputs that the call under way asks for.

    Attributes
    ----------
    hidden
        Hidden states wanted: False, True for all, or their numbers as transformers counts them
        (0 is the input of the first layer).
    grids
        SigLIP2's (height, width) of each row of the batch, MiniCPM-V's of each picture of the row,
        Qwen-VL's (time, height, width) of each video of the call, or empty.
    """

    hidden: bool | frozenset[int] = False
    grids: Grids = ()

    def layers(self, tower: Tower) -> frozenset[int]:
        """Numbers of the tower's layers whose output is wanted, the last one always."""
        count = len(tower.blocks)
        last = count - 1
        if self.hidden is False:
            return frozenset((last,))
        if self.hidden is True:
            return frozenset(range(count))
        wanted = {number % (tower.depth + 1) - 1 for number in self.hidden}
        return frozenset(layer for layer in wanted if 0 <= layer < count) | {last}


@dataclass
class RequestWatcher:
    """Collects the request of the call under way.

    Attributes
    ----------
    ancestors
        The tower and the modules between it and its layers, outermost first.
    check
        Called with the tower when a call begins; raises to refuse the call, returns False if the
        call is none of ours.
    no_attentions
        Why attention matrices cannot be had, as the end of a sentence.
    """

    ancestors: Sequence[nn.Module]
    check: Callable[[nn.Module], bool]
    no_attentions: str = (
        "is not available from a cached tower, because cached tokens have no attention row; "
        "detach the cacher first"
    )
    _request: TowerRequest = field(default_factory=TowerRequest)
    _hooks: list[RemovableHandle] = field(default_factory=list)

    def install(self) -> None:
        """Put a pre-hook on each module between the tower and its layers."""
        notice = PatchedHook(torch.compiler.disable(self._notice))
        for module in self.ancestors:
            self._hooks.append(module.register_forward_pre_hook(notice, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def take(self) -> TowerRequest:
        """Return the request of the call under way and forget it."""
        request, self._request = self._request, TowerRequest()
        return request

    def _notice(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        arguments = _bind(module, args, kwargs)
        if not self.check(module):
            return
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise RuntimeError(
                f"{type(module).__name__}: a tower with a cacher or a token merger cannot be "
                "traced, as what it computes is another thing for each frame; take that off first"
            )
        for name in ("output_attentions", "head_mask"):
            if _asks(module, arguments, name):
                raise ValueError(f"{type(module).__name__}: {name} {self.no_attentions}")
        hidden = _asks(module, arguments, "output_hidden_states")
        self._request.hidden = _merge(self._request.hidden, hidden)
        for name in ("spatial_shapes", "target_sizes", "grid_thw"):
            if isinstance(shapes := arguments.get(name), torch.Tensor):
                self._request.grids = tuple(tuple(shape) for shape in shapes.tolist())


def _bind(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by name; positional ones are named after the forward of the class."""
    return dict(zip(parameter_names(type(module).forward)[1:], args, strict=False)) | kwargs


def _asks(module: nn.Module, arguments: dict[str, Any], name: str) -> Any:
    """Value of an output flag: the argument, else the module's config, else False."""
    value = arguments.get(name)
    if value is None:
        value = getattr(getattr(module, "config", None), name, False)
    if isinstance(value, (list, tuple)) and not any(part is not None for part in value):
        return False  # transformers 4.57 hands down a list of None as head_mask
    return True if isinstance(value, torch.Tensor) else value


def _merge(known: bool | frozenset[int], asked: Any) -> bool | frozenset[int]:
    if asked is None or asked is False:
        return known
    if asked is True or known is True:
        return True
    numbers: frozenset[int] = frozenset([asked] if isinstance(asked, int) else asked)
    return numbers if known is False else known | numbers


def mask_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Attention mask that the tower passed to its layers: by name, or first after the states."""
    return kwargs.get("attention_mask", args[0] if args else None)


def looked_at(tower: Tower) -> frozenset[int]:
    """Numbers of the blocks whose output goes elsewhere than to the next block, in any call.

    The tower makes something of it by itself (DeepStack), or a hook of somebody sees it, there or
    as the next one's input. The hooks by which transformers collects outputs do nothing unless
    hidden states are asked for.
    """
    configs = (getattr(module, "config", None) for module in tower.ancestors)
    taken = (getattr(config, "deepstack_visual_indexes", None) or () for config in configs)
    seen = {number for numbers in taken for number in numbers if number < len(tower.blocks)}
    for number, block in enumerate(tower.blocks):
        layer = block.layer
        if layer._forward_hooks and any(map(is_foreign, layer._forward_hooks.values())):
            seen.add(number)
        if number and layer._forward_pre_hooks:
            seen.add(number - 1)
    return frozenset(seen)
