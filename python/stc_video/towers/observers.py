# SPDX-License-Identifier: Apache-2.0
"""Observers of attention: they are shown the queries and keys of every pass of a cacher.

A cacher and whoever wants to see its attention know the same layers and not each other, and either
may come first; so observers are kept here, by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias
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
