# SPDX-License-Identifier: Apache-2.0
"""Registration of operators with PyTorch, and the path of every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stc_kernels import _schemas
from stc_kernels._checks import as_int32, check_index_values
from stc_kernels._dispatch import choose, function_of, register_implementation
from stc_kernels._memory import check_storage, check_written
from stc_kernels._schemas import LIBRARY, NAMESPACE, native_name

_PLAIN = (Tensor, torch.nn.Parameter)


class _Operator(NamedTuple):
    """The properties that decide whether a call is refused, whatever the backend."""

    name: str
    check: Callable[..., None]
    parameters: tuple[str, ...]
    written: int
    indices: int | None
    limit: Callable[..., int] | None


_OPERATORS: dict[str, _Operator] = {}


def register(
    op: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None],
    *,
    indices: str | None = None,
    limit: Callable[..., int] | None = None,
) -> None:
    """Define an operator, its shapes for tracing, its backends and a backward that raises.

    Parameters
    ----------
    op
        Name in ``_schemas.SCHEMAS``.
    reference
        The float32 PyTorch implementation, called with the schema's arguments.
    fake
        Returns empty tensors of the right shape and dtype for the schema's arguments.
    check
        Raises on arguments that do not fit, by what is known without looking at any element.
    indices
        Name of the argument whose values have to be below a limit (or are -1).
    limit
        Returns that limit for the schema's arguments.
    """
    _schemas.define(op)
    names = _schemas.parameter_names(op)
    place = None if indices is None else names.index(indices)
    operator = _Operator(op, check, names, _schemas.written_arguments(op), place, limit)
    _OPERATORS[op] = operator

    def dispatch(*args: Any, backend: str | None = None) -> Any:
        check(*args)
        return _run(operator, args, backend)

    def dispatch_fake(*args: Any, backend: str | None = None) -> Any:
        check(*args)
        return fake(*args)

    LIBRARY.impl(op, dispatch, "CompositeExplicitAutograd")
    public = f"{NAMESPACE}::{op}"
    torch.library.register_fake(public, dispatch_fake, lib=LIBRARY)
    torch.library.register_fake(f"{NAMESPACE}::{native_name(op)}", dispatch_fake, lib=LIBRARY)
    if not op.endswith("_"):  # torch refuses autograd formulas for mutating operators
        torch.library.register_autograd(public, _raise_in_backward(op), lib=LIBRARY)
    register_implementation(op, "reference", reference)
    register_implementation(op, "native", _native(op))


def call(op: str, *args: Any, backend: str | None = None) -> Any:
    """Run an operator on the chosen backend. Its first argument is a tensor in every schema.

    Eager calls go straight to the backend. Under ``torch.compile`` the graph holds the operator
    itself, which chooses its backend when the compiled code runs.
    """
    operator = _OPERATORS[op]
    operator.check(*args)
    if torch.compiler.is_compiling() or not _is_plain(operator, args):
        return _overload(op)(*args, backend=backend)
    return _run(operator, args, backend)


def _is_plain(operator: _Operator, args: tuple[Any, ...]) -> bool:
    """Whether no argument needs the dispatcher.

    It unwraps subclasses, and has the formula that makes a later backward raise.
    """
    gradients = torch.is_grad_enabled()
    for name, value in zip(operator.parameters, args, strict=True):
        if type(value) in _PLAIN:
            if value.is_neg():  # its elements stand in memory without their sign
                raise ValueError(
                    f"`{operator.name}`: {name} must not be a lazy negation: call resolve_neg() "
                    "first"
                )
            if gradients and value.requires_grad:
                return False
        elif isinstance(value, Tensor):
            return False
    return True


def _run(operator: _Operator, args: tuple[Any, ...], backend: str | None) -> Any:
    """Check what only real tensors can tell, and run the chosen backend."""
    device = "cpu" if args[0].is_cpu else args[0].device.type
    chosen = choose(operator.name, device, backend, args[0])
    if operator.written:
        check_written(operator.name, operator.parameters, args, operator.written)
    # The compiled library looks at storages and indices itself, in less time than it takes here.
    if chosen != "native" or device != "cpu":
        args = _checked(operator, chosen, args)
    return function_of(operator.name, chosen)(*args)


def _checked(operator: _Operator, chosen: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments for a backend without checks of its own, or raise."""
    for name, value in zip(operator.parameters, args, strict=True):
        if isinstance(value, Tensor):
            check_storage(operator.name, name, value)
    if operator.indices is None or operator.limit is None:
        return args
    indices, limit = args[operator.indices], operator.limit(*args)
    check_index_values(operator.name, indices, limit)
    if chosen == "reference":
        return args
    return (*args[: operator.indices], as_int32(indices, limit), *args[operator.indices + 1 :])


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


def _raise_in_backward(op: str) -> Callable[..., Any]:
    def backward(_context: Any, *_gradients: Any) -> Any:
        raise RuntimeError(f"`{op}` is for inference only and has no gradient")

    return backward
