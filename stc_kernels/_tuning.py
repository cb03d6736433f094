# SPDX-License-Identifier: Apache-2.0
"""Launch parameters of the Triton kernels, as data.

``configs/<device>.json`` holds what ``python -m stc_kernels.tune`` measured on a device,
``configs/heuristic.json`` what is used on any other. Both have the same form: per kernel a list of
entries, each with a shape and the parameters that serve it. The entry whose shape is nearest, by
the ratio of the sizes, is taken. Nothing is measured while a stream runs.
"""

from __future__ import annotations

import functools
import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

CONFIGS = Path(__file__).parent / "configs"
HEURISTIC = CONFIGS / "heuristic.json"

#: name of a size -> its value, such as {"rows": 729, "channels": 1152}
Shape = dict[str, int]
#: compile-time constants of a kernel, and num_warps and num_stages
Parameters = dict[str, int]

_forced: ContextVar[tuple[str, Parameters, list[Shape]] | None] = ContextVar(
    "stc_kernels_tuning", default=None
)


class TuningWarning(UserWarning):
    """A device has no tuned launch parameters."""


def config_path(device_name: str) -> Path:
    """Return where the parameters of a device are kept, such as ``nvidia_h200.json``."""
    return CONFIGS / (re.sub(r"[^a-z0-9]+", "_", device_name.lower()).strip("_") + ".json")


@functools.cache
def read_config(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the entries of every kernel from a file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    kernels: dict[str, list[dict[str, Any]]] = content["kernels"]
    return kernels


def distance(shape: Shape, other: Shape) -> float:
    """Distance of two shapes: the sum of the logarithms of the ratios of their sizes."""
    return sum(
        abs(math.log2(max(1, size)) - math.log2(max(1, other[name])))
        for name, size in shape.items()
        if name in other
    )


@contextmanager
def forced(kernel: str, parameters: Parameters) -> Iterator[list[Shape]]:
    """Launch ``kernel`` with these parameters inside the ``with`` block, for the tuner.

    Gives a list of the shapes for which they were looked up.
    """
    shapes: list[Shape] = []
    token = _forced.set((kernel, parameters, shapes))
    try:
        yield shapes
    finally:
        _forced.reset(token)


def forget() -> None:
    """Read the files again when parameters are next looked up."""
    read_config.cache_clear()
    _nearest.cache_clear()


def parameters(kernel: str, device: torch.device, **shape: int) -> Parameters:
    """Return the launch parameters of a kernel for a shape.

    Parameters
    ----------
    kernel
        Name of the kernel in the configuration files.
    device
        Where it will run.
    **shape
        The sizes that its parameters depend on.
    """
    if (choice := _forced.get()) is not None and choice[0] == kernel:
        choice[2].append(shape)
        return choice[1]
    return _nearest(kernel, name_of(device), tuple(shape.items()))


@functools.lru_cache(maxsize=4096)
def _nearest(
    kernel: str, device_name: str | None, sizes: tuple[tuple[str, int], ...]
) -> Parameters:
    entries: list[dict[str, Any]] = []
    if device_name is not None:
        path = config_path(device_name)
        if path.exists():
            entries = read_config(path).get(kernel, [])
        if not entries:
            _warn_untuned(device_name)
    entries = entries or read_config(HEURISTIC)[kernel]
    shape = dict(sizes)
    best = min(entries, key=lambda entry: distance(shape, entry["shape"]))
    found: Parameters = best["parameters"]
    return found


@functools.cache
def name_of(device: torch.device) -> str | None:
    """Name of a GPU; None for a CPU, where only the interpreter runs."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(device)


@functools.cache
def _warn_untuned(device_name: str) -> None:
    """Say once per process that a device runs on the heuristic."""
    warnings.warn(
        f"stc_kernels: no tuned launch parameters for {device_name}; using those of "
        f"{HEURISTIC.name}. `python -m stc_kernels.tune` measures them and writes "
        f"{config_path(device_name)}",
        TuningWarning,
        stacklevel=6,
    )
