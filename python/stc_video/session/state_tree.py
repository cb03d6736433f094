# SPDX-License-Identifier: Apache-2.0
"""The state of cachers and pruners as JSON and tensors, without pickle."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor

from stc_video.session.saved_classes import make_instance, name_of

_PLAIN = (bool, int, float, str, type(None))
_SEQUENCES: dict[str, type] = {"list": list, "tuple": tuple, "deque": deque, "set": set}


def pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Describe a value for JSON.

    Parameters
    ----------
    value
        Numbers, strings, tensors, dtypes, devices, sequences and dicts of these, and instances of
        the classes that have a name in saves.
    tensors
        Gets the tensors.

    Returns
    -------
    Any
        What JSON can hold.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Tensor):
        name = f"state.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": True}
    kind = type(value)
    if kind.__name__ in _SEQUENCES and kind.__module__ in ("builtins", "collections"):
        items = [pack(item, tensors) for item in value]
        limit = {"maxlen": value.maxlen} if isinstance(value, deque) else {}
        return {kind.__name__: items} | limit
    if isinstance(value, dict):
        return {"dict": [[pack(k, tensors), pack(v, tensors)] for k, v in value.items()]}
    if (saved_name := name_of(kind)) is not None:
        fields = {name: pack(item, tensors) for name, item in vars(value).items()}
        return {"class": saved_name, "fields": fields}
    raise TypeError(f"save: the state of {kind.__module__}.{kind.__qualname__} cannot be saved")


def unpack(described: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    """Make a value again from what `pack` returned, with its tensors on a device.

    Raises
    ------
    ValueError
        If a class, its fields or a tensor is unknown, or a number is not finite.
    """
    if isinstance(described, float) and not math.isfinite(described):
        raise ValueError(f"numbers must be finite, got {described}")
    if isinstance(described, _PLAIN):
        return described
    if not isinstance(described, dict):
        raise ValueError(f"a part of the state must be an object, got {described!r:.80}")
    if "tensor" in described:
        if (name := described["tensor"]) not in tensors:
            raise ValueError(f"there is no tensor {name!r}")
        return tensors[name].to(device)
    if "dtype" in described:
        found = getattr(torch, str(described["dtype"]), None)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"there is no dtype {described['dtype']!r}")
        return found
    if "device" in described:
        return device
    if "dict" in described:
        pairs = described["dict"]
        return {unpack(k, tensors, device): unpack(v, tensors, device) for k, v in pairs}
    if "class" in described:
        items = described["fields"].items()
        fields = {name: unpack(item, tensors, device) for name, item in items}
        return make_instance(described["class"], fields)
    kind_name = next((name for name in _SEQUENCES if name in described), None)
    if kind_name is None:
        raise ValueError(f"a part of the state is of no known kind: {', '.join(described)}")
    items = [unpack(item, tensors, device) for item in described[kind_name]]
    if kind_name == "deque":
        return deque(items, described["maxlen"])
    return _SEQUENCES[kind_name](items)
