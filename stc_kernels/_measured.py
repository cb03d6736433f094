# SPDX-License-Identifier: Apache-2.0
"""Measurements of the fastest backend, as data.

``python -m stc_kernels.tune`` times every operator on every backend of a GPU and writes the times
beside the tuned launch parameters, into ``configs/<device>.json``::

    {"backends": {"select_changed": [
        {"shape": [1, 729, 1152], "bits": 16, "microseconds": {"native": 7.1, "triton": 8.0}}]}}

``shape`` and ``bits`` are those of the call's first tensor. A call takes the row that is nearest
to it by the ratio of the sizes, and of the backends that can run the one with the lowest time
there. Without a row for the operator the fixed order of ``_dispatch.py`` holds.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from stc_kernels import _tuning

#: a measured call: sizes of its first tensor, bits of an element, time by backend
Row = dict[str, Any]


@functools.cache
def rows(device_name: str) -> dict[str, list[Row]]:
    """Measured rows by operator; none for a device that was not measured."""
    path = _tuning.config_path(device_name)
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, list[Row]] = content.get("backends", {})
    return found


def fastest(op: str, first: Tensor, available: tuple[str, ...]) -> str | None:
    """Return the backend that was the fastest for a call, or None if that was not measured.

    Parameters
    ----------
    op
        Name of the operator.
    first
        Its first argument.
    available
        Backends that can run.
    """
    name = _tuning.name_of(first.device)
    if name is None or op not in rows(name):
        return None
    return _fastest(op, name, tuple(first.shape), 8 * first.element_size(), available)


@functools.lru_cache(maxsize=4096)
def _fastest(
    op: str, device_name: str, shape: tuple[int, ...], bits: int, available: tuple[str, ...]
) -> str | None:
    measured = rows(device_name)[op]
    alike = [row for row in measured if len(row["shape"]) == len(shape) and row["bits"] == bits]
    if not alike:
        return None
    sizes = _named(shape)
    nearest = min(alike, key=lambda row: _tuning.distance(sizes, _named(row["shape"])))
    times = {name: us for name, us in nearest["microseconds"].items() if name in available}
    return min(times, key=lambda name: times[name]) if times else None


def _named(shape: tuple[int, ...] | list[int]) -> _tuning.Shape:
    return {str(axis): size for axis, size in enumerate(shape)}


def origin(op: str, device_name: str | None) -> str | None:
    """Return which file decides for an operator on a device, and by how many measured calls."""
    measured = rows(device_name).get(op) if device_name is not None else None
    if not measured or device_name is None:
        return None
    path: Path = _tuning.config_path(device_name)
    return f"{path.name}, {len(measured)} measured calls"


def forget() -> None:
    """Read the files again when a backend is next looked up."""
    rows.cache_clear()
    _fastest.cache_clear()
