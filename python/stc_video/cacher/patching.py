# SPDX-License-Identifier: Apache-2.0
"""Putting a forward on single module instances, and taking it off again exactly.

Instances are patched, never classes, modules are never replaced, and nothing is stored on them,
so that ``state_dict`` keys, hidden-state capture and other models stay as they are.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import AttachError

#: marks our forwards, to recognise a module that is patched already
MARK = "_stc_video_forward"


@dataclass
class InstancePatch:
    """A forward put on one module instance.

    Attributes
    ----------
    module
        The patched module.
    slot
        The instance attribute that holds the forward. With accelerate's hooks this is
        ``_old_forward``, which their wrapper calls after moving the inputs.
    ours
        What was put there.
    before
        What was there: a leftover of transformers 4.57's hidden-state capture or accelerate's
        original; None if the class's own forward was in charge.
    """

    module: nn.Module
    slot: str
    ours: types.MethodType
    before: Any

    @classmethod
    def install(cls, module: nn.Module, forward: Callable[..., Any]) -> InstancePatch:
        """Patch a module; ``forward`` gets the module as its first argument."""
        slot = "_old_forward" if hasattr(module, "_hf_hook") else "forward"
        before = module.__dict__.get(slot)
        if getattr(before, MARK, False):
            raise AttachError(
                f"attach_cacher: {type(module).__name__} already has a cacher; "
                "detach that one first"
            )
        setattr(forward, MARK, True)
        patch = cls(module, slot, types.MethodType(forward, module), before)
        setattr(module, slot, patch.ours)
        return patch

    @property
    def in_place(self) -> bool:
        """Whether our forward is still the one that is installed."""
        return self.module.__dict__.get(self.slot) is self.ours

    def stock(self, *args: Any, **kwargs: Any) -> Any:
        """Run what the module would run without the patch."""
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)

    def remove(self) -> None:
        """Put back what was there."""
        if self.before is None:
            self.module.__dict__.pop(self.slot, None)
        else:
            setattr(self.module, self.slot, self.before)


def as_function(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a forward so that it can be marked and bound to a module.

    A compiled tower calls it as it is: what it does depends on the frames and on the streams.
    """

    def patched(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(layer, hidden_states, *args, **kwargs)

    uncompiled: Callable[..., Any] = torch.compiler.disable(patched)
    return uncompiled


def run_stock(patch: InstancePatch, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a layer as if it were not patched.

    A deep copy of a patched layer carries our forward along; it has no cacher of its own.
    """
    if layer is patch.module:
        return patch.stock(*args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)
