# SPDX-License-Identifier: Apache-2.0
"""How an operator is registered with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stc_kernels import _schemas
from stc_kernels._dispatch import implementation, register_implementation
from stc_kernels._schemas import LIBRARY, NAMESPACE, native_name


def register(op: str, reference: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Define an operator, its shapes for tracing, its backends and a backward that raises.

    Parameters
    ----------
    op
        Name in ``_schemas.SCHEMAS``.
    reference
        The float32 PyTorch implementation, called with the schema's arguments.
    fake
        Returns empty tensors of the right shape and dtype for the schema's arguments.
    """
    _schemas.define(op)

    def dispatch(*args: Any, backend: str | None = None) -> Any:
        return implementation(op, args[0], backend)(*args)

    def dispatch_fake(*args: Any, backend: str | None = None) -> Any:
        return fake(*args)

    LIBRARY.impl(op, dispatch, "CompositeExplicitAutograd")
    public = f"{NAMESPACE}::{op}"
    torch.library.register_fake(public, dispatch_fake, lib=LIBRARY)
    torch.library.register_fake(f"{NAMESPACE}::{native_name(op)}", fake, lib=LIBRARY)
    if not op.endswith("_"):  # torch refuses autograd formulas for mutating operators
        torch.library.register_autograd(public, _raise_in_backward(op), lib=LIBRARY)
    register_implementation(op, "reference", reference)
    register_implementation(op, "native", _native(op))


def call(op: str, *args: Any, backend: str | None = None) -> Any:
    """Run an operator on the chosen backend. Its first argument is a tensor in every schema.

    Eager calls go straight to the backend. Under ``torch.compile`` the graph holds the operator
    itself, which chooses its backend when the compiled code runs.
    """
    if torch.compiler.is_compiling():
        return _overload(op)(*args, backend=backend)
    if torch.is_grad_enabled() and any(_requires_grad(value) for value in args):
        # Through the dispatcher, whose autograd formula makes a later backward raise.
        return _overload(op)(*args, backend=backend)
    return implementation(op, args[0], backend)(*args)


def _native(op: str) -> Callable[..., Any]:
    """Return the compiled implementation, whose refusals become ValueErrors like everyone's."""
    overload = _overload(native_name(op))

    def run(*args: Any) -> Any:
        try:
            return overload(*args)
        except RuntimeError as error:
            sentence = str(error).partition("\n")[0]
            if f"`{op}`: " not in sentence:
                raise
            raise ValueError(sentence[sentence.index(f"`{op}`: ") :]) from None

    return run


def _overload(name: str) -> Any:
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _raise_in_backward(op: str) -> Callable[..., Any]:
    def backward(_context: Any, *_gradients: Any) -> Any:
        raise RuntimeError(f"`{op}` is for inference only and has no gradient")

    return backward
