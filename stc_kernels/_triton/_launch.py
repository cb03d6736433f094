# SPDX-License-Identifier: Apache-2.0
"""How every kernel is launched, or only written down for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stc_kernels._tuning import Parameters


@dataclass(frozen=True)
class Launch:
    """One launch: a jitted function, its run-time arguments, its compile-time constants."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    options: Parameters


_OPTIONS = ("num_warps", "num_stages")
_recorded: ContextVar[list[Launch] | None] = ContextVar("stc_kernels_recorded", default=None)


@contextmanager
def record() -> Iterator[list[Launch]]:
    """Collect launches instead of running them; the tensors may be on the meta device."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any, grid: tuple[int, ...], *arguments: Any, parameters: Parameters, **constants: Any
) -> None:
    """Launch ``kernel`` on ``grid``; an empty grid does nothing.

    Parameters
    ----------
    kernel
        A ``triton.jit`` function.
    grid
        Number of programs along each axis.
    *arguments
        Run-time arguments in the kernel's order, the first a tensor.
    parameters
        Its tuned constants, ``num_warps`` and ``num_stages``.
    **constants
        Its other constants.
    """
    options = {name: parameters[name] for name in _OPTIONS if name in parameters}
    tuned = {name: value for name, value in parameters.items() if name not in _OPTIONS}
    launches = _recorded.get()
    if launches is not None:
        launches.append(Launch(kernel, arguments, {**constants, **tuned}, options))
    elif 0 not in grid:
        with _device_of(arguments[0]):
            kernel[grid](*arguments, **constants, **tuned, **options)


def _device_of(tensor: Tensor) -> Any:
    """Make the tensor's GPU the current one: Triton launches there, whatever its arguments."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
