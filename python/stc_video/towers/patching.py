# SPDX-License-Identifier: Apache-2.0
"""Putting a forward on single module instances, and taking it off again exactly.

Instances are patched, never classes, modules are never replaced, and nothing is stored on them,
so that ``state_dict`` keys, hidden-state capture and other models stay as they are. A copy of a
patched module, by ``copy.deepcopy``, ``pickle`` or ``torch.save``, is a stock module.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.errors import AttachError
from stc_video.towers.bypassed import is_foreign
from stc_video.towers.plain import PATCH_MARK

CACHER_TITLE = "a cacher; detach that one first"


class PatchedMethod:
    """A method that we put on one instance. A copy of the instance gets the one from before.

    Parameters
    ----------
    function
        What is called, with the instance as its first argument.
    instance
        A module.
    name
        The name of the method in the instance's class.
    before
        What the instance had in its place; None for its class's own method.
    """

    # A slot is not copied by functools.update_wrapper when somebody wraps us.
    __slots__ = ("__dict__", PATCH_MARK)

    def __init__(
        self, function: Callable[..., Any], instance: nn.Module, name: str, before: Any = None
    ) -> None:
        self.function = function
        self.instance = instance
        self.name = self.__name__ = name
        self.before = before
        self.__doc__ = function.__doc__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(types.MethodType(self.function, self.instance))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function with the instance."""
        return self.function(self.instance, *args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.before is not None:
            return operator.itemgetter(0), ((self.before,),)
        # Looked up while the copy is still empty, so that its class's method is found.
        return getattr, (self.instance, self.name)


class PatchedHook:
    """A hook that we put on one instance. On a copy of the instance it does nothing."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.function(*args)

    def __reduce__(self) -> tuple[Any, ...]:
        # Of the standard library: takes any arguments, returns None, needs no stc_video to load.
        return getattr, (contextlib.nullcontext(), "__exit__")


def foreign_hooks(module: nn.Module) -> Iterator[Callable[..., Any]]:
    """Iterate over a module's forward hooks that are neither ours nor transformers' own capture."""
    for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values()):
        if is_foreign(hook) and not isinstance(hook, PatchedHook):
            yield hook


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
    ours: PatchedMethod
    before: Any

    @classmethod
    def install(
        cls,
        module: nn.Module,
        forward: Callable[..., Any],
        *,
        owner: object = None,
        caller: str = "attach_cacher",
    ) -> InstancePatch:
        """Patch a module; ``forward`` gets the module as its first argument.

        Parameters
        ----------
        module
            The module.
        forward
            A function.
        owner
            The handle that it belongs to, with which it is marked. Its ``title``, such as
            ``"a cacher; detach that one first"``, completes the error of whoever comes next.
        caller
            Function that this error names.

        Raises
        ------
        AttachError
            If the module is patched already.
        """
        slot = _slot(module)
        before = module.__dict__.get(slot)
        if hasattr(before, PATCH_MARK):
            title = getattr(getattr(before, PATCH_MARK), "title", CACHER_TITLE)
            raise AttachError(f"{caller}: {type(module).__name__} already has {title}")
        ours = PatchedMethod(forward, module, "forward", before)
        setattr(ours, PATCH_MARK, owner)
        setattr(module, slot, ours)
        return cls(module, slot, ours, before)

    @classmethod
    def install_all(
        cls,
        modules: Iterable[nn.Module],
        forwards: Iterable[Callable[..., Any]],
        *,
        owner: object,
        caller: str,
    ) -> list[InstancePatch]:
        """Patch several modules, or none of them if one is refused."""
        patches: list[InstancePatch] = []
        try:
            for module, forward in zip(modules, forwards, strict=True):
                patches.append(cls.install(module, forward, owner=owner, caller=caller))
        except BaseException:
            for patch in patches:
                patch.remove()
            raise
        return patches

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
    """Wrap a forward so that a compiled tower calls it as it is.

    What it does depends on the frames and on the streams.
    """

    def patched(layer: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(layer, hidden_states, *args, **kwargs)

    uncompiled: Callable[..., Any] = torch.compiler.disable(patched)
    return uncompiled


def run_stock(patch: InstancePatch, layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Run a layer as if it were not patched.

    A replica that shares the layer's attributes (``DataParallel``) has no cacher of its own.
    """
    if layer is patch.module:
        return patch.stock(*args, **kwargs)
    return type(layer).forward(layer, *args, **kwargs)


def has_own_forward(module: nn.Module) -> bool:
    """Whether nobody put a forward of another kind on a module instance."""
    before = module.__dict__.get(_slot(module))
    return before is None or getattr(before, "__func__", None) is type(module).forward


def owner_of(module: nn.Module) -> Any:
    """Return the handle whose forward is on a module, or None.

    It may be wrapped: transformers before 5.3 does so while a call collects hidden states.
    """
    forward = module.__dict__.get(_slot(module))
    while forward is not None and not hasattr(forward, PATCH_MARK):
        forward = getattr(forward, "__wrapped__", None)
    return getattr(forward, PATCH_MARK, None)


def check_in_place(
    patches: Sequence[InstancePatch], tower: nn.Module, *, owner: str, undo: str
) -> None:
    """Raise AttachError if another forward was put on a layer after ours."""
    foreign = [i for i, patch in enumerate(patches) if not patch.in_place]
    if foreign:
        raise AttachError(
            f"{undo}: something else patched layer {', '.join(map(str, foreign))} of "
            f"{type(tower).__name__} after the {owner}; undo that first, or call "
            f"{undo}(force=True) to put the original forwards back"
        )


def _slot(module: nn.Module) -> str:
    return "_old_forward" if hasattr(module, "_hf_hook") else "forward"
