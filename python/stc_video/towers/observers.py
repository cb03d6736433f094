# SPDX-License-Identifier: Apache-2.0
"""Who looks at the layers of a tower while it runs.

Observers of attention are shown the queries and keys of every pass of a cacher.
A cacher and whoever wants to see its attention know the same layers and not each other, and either
may come first; so observers are kept here, by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import Tensor, nn

#: called with queries (B, K, C) and keys (B, N, C)
Observer: TypeAlias = Callable[[Tensor, Tensor], None]

_OBSERVERS: WeakKeyDictionary[nn.Module, list[Observer]] = WeakKeyDictionary()


def add_observer(layer: nn.Module, observer: Observer) -> None:
    """Show the attention of a layer to an observer from now on."""
    _OBSERVERS.setdefault(layer, []).append(observer)


def remove_observer(layer: nn.Module, observer: Observer) -> None:
    """Stop showing it; nothing happens if the observer is not there."""
    observers = _OBSERVERS.get(layer, [])
    if observer in observers:
        observers.remove(observer)


def show_attention(layer: nn.Module, query: Tensor, key: Tensor) -> None:
    """Show queries and keys of a layer to its observers."""
    for observer in _OBSERVERS.get(layer, ()):
        observer(query, key)


@contextmanager
def unobserved(layer: nn.Module) -> Iterator[None]:
    """Run a layer on something that is no frame of its observers."""
    observers = _OBSERVERS.pop(layer, None)
    try:
        yield
    finally:
        if observers is not None:
            _OBSERVERS[layer] = observers


@contextmanager
def outputs_of(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what the layers return while the block runs, in the order of the layers."""
    by_layer: dict[nn.Module, Tensor] = {}
    outputs: list[Tensor] = []

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        by_layer[layer] = output[0] if isinstance(output, tuple) else output

    hooks = [layer.register_forward_hook(keep) for layer in dict.fromkeys(layers)]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
    outputs += [by_layer[layer] for layer in layers]
