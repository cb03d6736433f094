# SPDX-License-Identifier: Apache-2.0
"""The name of the argument in which a model takes its cache of keys and values.

``past_key_values`` up to transformers 5.23, ``cache`` from 5.24 on, which still takes the older
name with a FutureWarning. Here it is ``cache``; :func:`stock_named` has the installed release's
name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

#: the name in this package
CACHE = "cache"
#: every name that a caller may use
CACHE_NAMES = (CACHE, "past_key_values")


def one_named(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the cache among a caller's arguments the name that it has in this package.

    Raises
    ------
    ValueError
        If two caches are given.
    """
    rest = {name: value for name, value in arguments.items() if name not in CACHE_NAMES}
    given = [arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None]
    if len(given) == 2 and given[0] is not given[1]:
        raise ValueError(
            f"accelerated model: {' and '.join(CACHE_NAMES)} are two names of one argument, got "
            "two different caches"
        )
    return rest | {CACHE: given[0]} if given else rest


def stock_named(model: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the cache among our arguments the name that the model knows."""
    rest = dict(arguments)
    return rest | cache_argument(model, rest.pop(CACHE)) if CACHE in rest else rest


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return the argument that hands a cache to a model, or to one's ``generate``."""
    # Of the class: the instance's may be one of ours or of another package.
    taken = inspect.signature(type(model).forward).parameters
    return {next((name for name in CACHE_NAMES if name in taken), CACHE_NAMES[-1]): cache}


def cache_of(output: Any) -> Any:
    """Return the cache in what a model or ``generate`` returned, None if there is none."""
    if isinstance(output, tuple):
        return next((part for part in output if hasattr(part, "get_seq_length")), None)
    # Not by attribute: a release with a new name warns of the older one.
    held = vars(output)
    return next((held[name] for name in CACHE_NAMES if held.get(name) is not None), None)
