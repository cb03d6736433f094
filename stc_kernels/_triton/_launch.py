# SPDX-License-Identifier: Apache-2.0
"""Launches of all kernels, which can also be recorded for ahead-of-time compilation."""

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
    """One launch: a jitted function, how many programs, run-time arguments, constants."""

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    options: Parameters


#: along the first axis of a grid
_MOST_PROGRAMS = 2**31 - 1
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
    kernel: Any, programs: int, *arguments: Any, parameters: Parameters, **constants: Any
) -> None:
    """Launch ``kernel``; no programs do nothing.

    Grids have one axis: the others end at 65,535, which a number of frames or heads may pass. A
    kernel finds its place with ``split_program``.

    Parameters
    ----------
    kernel
        A ``triton.jit`` function.
    programs
        How many of them.
    *arguments
        Run-time arguments in the kernel's order, the first a tensor.
    parameters
        Its tuned constants, ``num_warps`` and ``num_stages``.
    **constants
        Its other constants.

    Raises
    ------
    ValueError
        If there are too many programs for one launch.
    """
    if programs > _MOST_PROGRAMS:
        raise ValueError(
            f"{kernel.__name__}: a launch has at most {_MOST_PROGRAMS} programs, got {programs}; "
            "give it fewer frames at a time"
        )
    options = {name: parameters[name] for name in _OPTIONS if name in parameters}
    tuned = {name: value for name, value in parameters.items() if name not in _OPTIONS}
    launches = _recorded.get()
    if launches is not None:
        launches.append(Launch(kernel, programs, arguments, {**constants, **tuned}, options))
    elif programs > 0:
        with _device_of(arguments[0]):
            kernel[(programs,)](*arguments, **constants, **tuned, **options)


def _device_of(tensor: Tensor) -> Any:
    """Make the tensor's GPU the current one: Triton launches there, whatever its arguments."""
    if tensor.device.type != "cuda" or tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)
