# SPDX-License-Identifier: Apache-2.0
"""Parts of a model that are not called: what somebody hung on them would be left out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from stc_video.errors import UnsupportedModelError

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def refuse_hooks(modules: Mapping[str, nn.Module], who: str, ours: Collection[str] = ()) -> None:
    """Refuse modules, by name, with hooks or a forward of their own, as they will not be called.

    Those by which the package `accelerate` moves tensors between devices do no harm.

    Parameters
    ----------
    modules
        What is not called, by name.
    who
        For the message.
    ours
        Attributes that were put there by this package.

    Raises
    ------
    UnsupportedModelError
        Naming the first such module.
    """
    for name, module in modules.items():
        if hasattr(module, "_hf_hook"):
            continue
        has_own = "forward" in vars(module) and "forward" not in ours
        if has_own or any(getattr(module, hooks, None) for hooks in _HOOKS):
            what = "a forward of its own" if has_own else "hooks"
            raise UnsupportedModelError(
                f"{who}: {name} ({type(module).__name__}) has {what}, which would not be called; "
                "take that off first"
            )


def refuse_methods(modules: Mapping[str, nn.Module], methods: Collection[str], who: str) -> None:
    """Refuse modules, by name, whose methods others replaced, as they will not be called.

    Raises
    ------
    UnsupportedModelError
        Naming the first such method.
    """
    for name, module in modules.items():
        for method in methods:
            own = vars(module).get(method)
            is_class_own = getattr(own, "__func__", None) is getattr(type(module), method, None)
            if own is not None and not is_class_own:  # a copy has its class's
                raise UnsupportedModelError(
                    f"{who}: {name}.{method} was replaced, which would not be called; put the "
                    "model's own back first"
                )
