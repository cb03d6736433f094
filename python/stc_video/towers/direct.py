# SPDX-License-Identifier: Apache-2.0
"""Blocks whose parts are called as functions, where calling their modules would do nothing else.

Each call of a module takes several steps of Python, which in a cached frame of a small tower are a
tenth of the time. Whether somebody has put anything on one of them is looked at once a frame.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from stc_video.towers.block import Block
from stc_video.towers.fused import layers_of_mlp
from stc_video.towers.plain import PATCH_MARK

Function: TypeAlias = Callable[[Tensor], Tensor]

#: parts that are called with rows and return rows
_CALLED = ("norm1", "norm2", "output", "mlp", "mlp_output", "scale1", "scale2")


class Untouched:
    """The modules of some blocks, to tell whether there is anything on one of them but ours."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        parts = (part for block in blocks for part in block.parts)
        modules = list(dict.fromkeys(module for part in parts for module in part.modules()))
        self._hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks.append(of_all_modules._global_forward_hooks)
        self._hooks.append(of_all_modules._global_forward_pre_hooks)
        self._attributes = list(map(vars, modules))
        self._classes: list[Any] = list(dict.fromkeys(map(type, modules)))
        self._forwards = self._current()
        own = self._forwards[: len(modules)]
        self._are_ours = all(one is None or hasattr(one, PATCH_MARK) for one in own)

    def __bool__(self) -> bool:
        return self._are_ours and not any(self._hooks) and self._current() == self._forwards

    def _current(self) -> list[Any]:
        own = map(dict.get, self._attributes, repeat("forward"))
        return [*own, *(one.forward for one in self._classes)]


def direct(block: Block, functions: dict[nn.Linear, Function]) -> Block:
    """Return a block with functions in place of its modules, those of linear layers as given.

    They look weights up as the modules do.
    """
    short = copy.copy(block)
    for name in _CALLED:
        if isinstance(part := getattr(block, name), nn.Module):
            vars(short)[name] = _function_of(part, functions)
    return short


def _function_of(part: nn.Module, functions: dict[nn.Linear, Function]) -> Function:
    if isinstance(part, nn.Linear) and part in functions:
        return functions[part]
    if type(part) is nn.LayerNorm:
        return _normalise(part)
    if (layers := layers_of_mlp(part)) is not None:
        first, activation, second = (_function_of(one, functions) for one in layers)
        return lambda x: second(activation(first(x)))
    forward: Function = part.forward
    return forward


def _normalise(norm: nn.LayerNorm) -> Function:
    weights: dict[str, Any] = norm._parameters

    def normalise(x: Tensor) -> Tensor:
        both = weights["weight"], weights["bias"]
        return torch.layer_norm(x, norm.normalized_shape, *both, norm.eps)

    return normalise
