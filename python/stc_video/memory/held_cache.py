# SPDX-License-Identifier: Apache-2.0
"""The cache of transformers in which a plain memory holds keys, values and recurrent states.

Hybrid language models (Qwen3.5) have layers of linear attention among those of full attention. Such
a layer keeps one state of everything so far, which each token overwrites: it can be copied, saved
and gone on with, but no frame can be taken out of it. It knows no positions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_STATES = ("conv_states", "recurrent_states")


def is_recurrent(config: Any) -> bool:
    """Whether a language model has layers of linear attention."""
    return "linear_attention" in (getattr(config, "layer_types", None) or ())


def empty_cache(config: Any) -> Any:
    """Make a cache for a language model that keeps everything."""
    from transformers import DynamicCache

    make: Any = DynamicCache  # has no types
    return make(config=config) if is_recurrent(config) else make()


def copied(cache: Any) -> Any:
    """Copy a cache and all that it holds."""
    return copy.deepcopy(cache)


def undo_point(cache: Any) -> list[Any]:
    """Layers to put back after a failed call: keys and values are replaced, states overwritten."""
    return [copy.deepcopy(layer) if _states(layer) else copy.copy(layer) for layer in cache.layers]


def tensors_of(cache: Any) -> dict[str, Tensor]:
    """All that a cache holds, by the kind of tensor and the number of the layer."""
    found: dict[str, Tensor] = {}
    for number, layer in enumerate(cache.layers):
        parts = {name: getattr(layer, name, None) for name in ("keys", "values")}
        held = parts | _states(layer)
        found |= {f"{k}.{number}": v for k, v in held.items() if v is not None}
    return found


def load_tensors(cache: Any, tensors: Mapping[str, Tensor], layers: int) -> None:
    """Fill an empty cache with what another one held."""
    for number in range(layers):
        if f"keys.{number}" in tensors:
            cache.update(tensors[f"keys.{number}"], tensors[f"values.{number}"], number)
        for name, update in zip(
            _STATES, ("update_conv_state", "update_recurrent_state"), strict=True
        ):
            if f"{name}.{number}" in tensors:
                getattr(cache, update)(tensors[f"{name}.{number}"], number)


def _states(layer: Any) -> dict[str, Tensor]:
    """The states of a layer of linear attention, by name; one of each kind."""
    found = {}
    for name in _STATES:
        state = getattr(layer, name, None)
        state = state.get(0) if isinstance(state, dict) else state
        if state is not None:
            found[name] = state
    return found
