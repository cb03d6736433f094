# SPDX-License-Identifier: Apache-2.0
"""Whether calling a module would do what its class does, and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

#: attribute of the forwards that we put on modules; it names the handle they belong to
PATCH_MARK = "_stc_video_owner"


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling a module would do nothing but what its class does with its weight.

    That is so if it is no subclass, its weight is an ordinary parameter and no quantised one, and
    nobody but us has put a hook or a forward on it.
    """
    is_own = type(module) is kind and type(module.weight) is nn.Parameter
    return is_own and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """Whether nobody but us has put a hook or a forward on a module."""
    forward = module.__dict__.get("forward")
    is_ours = forward is None or hasattr(forward, PATCH_MARK)
    return is_ours and not module._forward_hooks and not module._forward_pre_hooks


def is_plain_linear(module: nn.Module) -> bool:
    """Whether calling a layer would do nothing but multiply by its weight."""
    return is_plain(module, nn.Linear)


@functools.lru_cache(maxsize=256)
def parameter_names(forward: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the parameters of a class's forward, ``self`` among them.

    Python takes longer to find them than a small layer to multiply, and they are asked for in
    every frame.
    """
    return tuple(inspect.signature(forward).parameters)
