# SPDX-License-Identifier: Apache-2.0
"""Attributes that are put on the instance of a model, and taken off again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from stc_video.towers.patching import PatchedMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Put:
    """What was put in place of an attribute of a module, and what was there; None if nothing."""

    module: nn.Module
    name: str
    ours: Any
    before: Any


def locked(module: nn.Module, name: str, lock: AbstractContextManager[Any]) -> PatchedMethod:
    """Make a method that runs the stock one while it holds a lock."""
    stock = getattr(module, name)

    @functools.wraps(getattr(type(module), name))
    def method(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with lock:
            return stock(*args, **kwargs)

    return PatchedMethod(method, module, name, module.__dict__.get(name))


def bound(model: PreTrainedModel, name: str, ours: Callable[..., Any]) -> PatchedMethod:
    """Make a method with the signature of the stock one, which passes all arguments by name."""
    stock = getattr(type(model), name)
    signature = inspect.signature(stock)
    rest = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]

    def method(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        arguments = dict(signature.bind_partial(self, *args, **kwargs).arguments)
        arguments.pop("self", None)
        for collected in rest:
            arguments |= arguments.pop(collected, {})
        return ours(**arguments)

    method.__name__, method.__doc__ = stock.__name__, stock.__doc__
    method.__signature__ = signature  # type: ignore[attr-defined]
    # What depends on the step cannot be in a graph, which `generate` records for a static cache.
    stepping = torch.compiler.disable(method)
    return PatchedMethod(stepping, model, name, model.__dict__.get(name))
