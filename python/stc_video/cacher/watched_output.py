# SPDX-License-Identifier: Apache-2.0
"""A tensor that notices where it goes, for outputs that nobody asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class WatchedOutput(Tensor):
    """The output of a block that nobody asked for, and whatever is computed from it.

    It may go to the next block, where it is replaced. If it reaches the output of the tower, or
    is written into another tensor, the tower needs what cached frames do not have.
    """

    was_written = False

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator; results are watched, too."""
        target, name = args[0] if args else None, getattr(func, "__name__", "")
        writes = name in ("__setitem__", "__iadd__") or (name[-1:] == "_" != name[:1])
        if "out" in (kwargs or {}) or (writes and type(target) is Tensor):
            cls.was_written = True
        return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]


def plain(x: Tensor) -> Tensor:
    """The tensor itself, watched no longer."""
    with torch._C.DisableTorchFunctionSubclass():
        return x.as_subclass(Tensor)


def without_hidden_states(output: Any) -> Any:
    """Leave the hidden states out of what a tower returns, in a tuple or by name."""
    if isinstance(output, dict):
        return {name: part for name, part in output.items() if name != "hidden_states"}
    if isinstance(output, (list, tuple)):
        return [part for part in output if not isinstance(part, (list, tuple))]
    return output


def holds(value: Any, kind: type) -> bool:
    """Whether there is a tensor of a kind anywhere in an output."""
    if isinstance(value, Tensor):
        return isinstance(value, kind)
    if isinstance(value, dict):
        return any(holds(part, kind) for part in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(holds(part, kind) for part in value)
    return hasattr(value, "__dict__") and any(holds(part, kind) for part in vars(value).values())
