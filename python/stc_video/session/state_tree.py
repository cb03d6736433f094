# SPDX-License-Identifier: Apache-2.0
"""The state of cachers and pruners as JSON and tensors, without pickle."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from stc_video.session.saved_classes import make_instance, name_of

__all__ = ["pack", "unpack"]

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
        If a class or its fields are unknown.
    """
    if isinstance(described, _PLAIN):
        return described
    if "tensor" in described:
        return tensors[described["tensor"]].to(device)
    if "dtype" in described:
        return getattr(torch, described["dtype"])
    if "device" in described:
        return device
    if "dict" in described:
        pairs = described["dict"]
        return {unpack(k, tensors, device): unpack(v, tensors, device) for k, v in pairs}
    if "class" in described:
        items = described["fields"].items()
        fields = {name: unpack(item, tensors, device) for name, item in items}
        return make_instance(described["class"], fields)
    kind_name = next(name for name in _SEQUENCES if name in described)
    items = [unpack(item, tensors, device) for item in described[kind_name]]
    if kind_name == "deque":
        return deque(items, described["maxlen"])
    return _SEQUENCES[kind_name](items)
