# SPDX-License-Identifier: Apache-2.0
"""Choice of the implementation of an operator, and the reasons against the others.

The choice is made in this order: the ``backend=`` argument, an enclosing :func:`use_backend`, the
environment variable ``STC_KERNELS_BACKEND``, what ``python -m stc_kernels.tune`` measured on this
device, and last a fixed order. A choice of the first three kinds that cannot run raises; the last
two move on to the next backend.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from stc_kernels import _measured, _native, _triton, _tuning
from stc_kernels._schemas import NAMESPACE, OPS, native_name

ENVIRONMENT_VARIABLE = "STC_KERNELS_BACKEND"

#: every backend this package knows, by name
BACKENDS: tuple[str, ...] = ("native", "triton", "reference")

# Fastest first. Only backends that exist for the device type are listed.
_PREFERENCE: dict[str, tuple[str, ...]] = {
    "cpu": ("native", "reference"),
    "cuda": ("triton", "native", "reference"),
}

_implementations: dict[str, dict[str, Callable[..., Any]]] = {op: {} for op in OPS}
_chosen: ContextVar[str | None] = ContextVar("stc_kernels_backend", default=None)


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for cannot run this operator on this device."""


class BackendWarning(UserWarning):
    """The preferred backend of a device is missing and the next one is used."""


@dataclass(frozen=True)
class AvailableBackends:
    """Backends of one operator on one device type.

    Attributes
    ----------
    op
        Name of the operator.
    device
        Device type, such as ``"cpu"``.
    available
        Names of the backends that can run, the default first.
    unavailable
        For each other backend the reason why it cannot run.
    measured
        Where the times are from by which a call's backend is chosen, whatever the default; None
        if there are none.
    """

    op: str
    device: str
    available: tuple[str, ...]
    unavailable: dict[str, str] = field(default_factory=dict)
    measured: str | None = None

    def __contains__(self, backend: object) -> bool:
        return backend in self.available

    def __iter__(self) -> Iterator[str]:
        return iter(self.available)

    def describe(self) -> str:
        """Say in one sentence which backends run and why the others do not."""
        missing = "; ".join(f"{name}: {reason}" for name, reason in self.unavailable.items())
        runs = ", ".join(self.available) or "none"
        chosen = f"; chosen by {self.measured}" if self.measured else ""
        return f"available for `{self.op}` on {self.device}: {runs}{chosen}" + (
            f" ({missing})" if missing else ""
        )


def register_implementation(op: str, backend: str, function: Callable[..., Any]) -> None:
    """Make ``function`` the implementation of ``op`` for ``backend``."""
    _implementations[op][backend] = function


def check_backend_name(backend: str, source: str) -> str:
    """Return ``backend`` if it is the name of a backend, else raise ValueError."""
    if backend not in BACKENDS:
        allowed = ", ".join(BACKENDS)
        raise ValueError(f"{source}: backend must be one of {allowed}, got {backend!r}")
    return backend


def use_backend(backend: str) -> AbstractContextManager[None]:
    """Use one backend for every operator called inside the ``with`` block.

    Parameters
    ----------
    backend
        ``"native"``, ``"triton"`` or ``"reference"``. Whether it can run is checked when an
        operator is called, because that depends on the operator and the device.

    Raises
    ------
    ValueError
        If there is no backend of that name.
    """
    return _using(check_backend_name(backend, "use_backend"))


@contextmanager
def _using(backend: str) -> Iterator[None]:
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def explicit_choice(argument: str | None) -> str | None:
    """Return the backend asked for by argument, context or environment, or None."""
    if argument is not None:
        return check_backend_name(argument, "backend argument")
    if (chosen := _chosen.get()) is not None:
        return chosen
    # Not get(), whose way to say that there is none takes as long as all else here.
    if ENVIRONMENT_VARIABLE in os.environ and (variable := os.environ[ENVIRONMENT_VARIABLE]):
        return check_backend_name(variable, ENVIRONMENT_VARIABLE)
    return None


def _reason_against(op: str, backend: str, device: str) -> str | None:
    """Return None if ``backend`` can run ``op`` on ``device``, else the reason."""
    if backend == "reference":
        return None
    if backend == "triton":
        return _triton.why_unavailable(op, device)
    if reason := _native.load() or _native.why_not_on(device):
        return reason
    return None if _is_compiled(op, device) else _not_compiled(device)


def _is_compiled(op: str, device: str) -> bool:
    """Whether the loaded library has a kernel of ``op`` for ``device``."""
    name = f"{NAMESPACE}::{native_name(op)}"
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        name, torch._C._dispatch_key_for_device(device)
    )


def _not_compiled(device: str) -> str:
    return f"the compiled library has no {device.upper()} kernel for this operator"


@lru_cache(maxsize=256)
def available_backends(op: str, device: str = "cpu") -> AvailableBackends:
    """List the backends that can run an operator, and the reason for each that cannot.

    Parameters
    ----------
    op
        Name of the operator, one of ``stc_kernels.OPS``.
    device
        Device type: ``"cpu"`` or ``"cuda"`` (which is also what ROCm is called in torch).

    Returns
    -------
    AvailableBackends
        The available ones in order of preference, and a reason for each of the others.

    Raises
    ------
    ValueError
        If the operator is unknown.
    """
    if op not in OPS:
        raise ValueError(f"available_backends: op must be one of {', '.join(OPS)}, got {op!r}")
    reasons = {name: _reason_against(op, name, device) for name in BACKENDS}
    order = _PREFERENCE.get(device, ("reference",))
    runs = [name for name in order if reasons[name] is None]
    runs += [name for name in BACKENDS if reasons[name] is None and name not in runs]
    missing = {name: reason for name, reason in reasons.items() if reason is not None}
    name = _tuning.name_of(torch.device(device)) if len(runs) > 1 else None
    return AvailableBackends(op, device, tuple(runs), missing, _measured.origin(op, name))


@lru_cache(maxsize=8)
def _warn_not_preferred(device: str, preferred: str, used: str, reason: str) -> None:
    """Say once per process that the fastest backend of a device is missing."""
    warnings.warn(
        f"stc_kernels: the {preferred} backend is not available on {device} ({reason}); "
        f"using {used}. Silence this by choosing one: {ENVIRONMENT_VARIABLE}={used}",
        BackendWarning,
        stacklevel=5,
    )


def choose(
    op: str, device: str, argument: str | None = None, first: torch.Tensor | None = None
) -> str:
    """Return the name of the backend that runs ``op`` on ``device``.

    Parameters
    ----------
    op, device
        Name of the operator, type of the device.
    argument
        What the caller asked for.
    first
        The first argument of the call, whose sizes decide where times were measured.

    Raises
    ------
    BackendUnavailableError
        If a backend was asked for that cannot run; the message names every backend's reason.
    """
    backends = available_backends(op, device)
    if (asked := explicit_choice(argument)) is not None:
        if asked not in backends:
            raise BackendUnavailableError(
                f"`{op}`: backend {asked!r} cannot run on {device}; {backends.describe()}"
            )
        return asked
    if backends.measured and first is not None:
        measured = _measured.fastest(op, first, backends.available)
        if measured is not None:
            return measured
    used = backends.available[0]
    preferred = _PREFERENCE.get(device, ("reference",))[0]
    # An operator that no library has for this device is nothing that a user could mend.
    if used != preferred and backends.unavailable[preferred] != _not_compiled(device):
        _warn_not_preferred(device, preferred, used, backends.unavailable[preferred])
    return used


def function_of(op: str, backend: str) -> Callable[..., Any]:
    """Return what a backend runs for an operator."""
    if backend == "triton":
        return _triton.implementation(op)
    return _implementations[op][backend]


def forget() -> None:
    """Look again at what can run and what was measured."""
    available_backends.cache_clear()
    _measured.forget()
