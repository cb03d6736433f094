# SPDX-License-Identifier: Apache-2.0
"""Moving chosen rows: gather, scatter in place, gather with layer norm, scatter with residual."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import (
    check_channels,
    check_device,
    check_eps,
    check_float,
    check_indices,
    check_same,
    check_shape,
    number,
)
from stc_kernels.ops._register import call, register
from stc_kernels.reference import rows as _reference


def gather_rows(x: Tensor, indices: Tensor, *, backend: str | None = None) -> Tensor:
    """Collect chosen rows of each frame.

    Parameters
    ----------
    x
        (B, N, C), float32, float16 or bfloat16, any strides.
    indices
        (B, K) int32 or int64 in [0, N); -1 stands for an empty place. On a CPU an index out of
        range raises; on a GPU it is an error of the caller, because checking would synchronise.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, K, C) contiguous; rows of index -1 are zeros.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or (on a CPU) an index out of range.
    TypeError
        On an unsupported dtype.
    """
    rows: Tensor = call("gather_rows", x, indices, backend=backend)
    return rows


def scatter_rows_(
    x: Tensor, indices: Tensor, rows: Tensor, *, backend: str | None = None
) -> Tensor:
    """Overwrite chosen rows of each frame in place.

    Parameters
    ----------
    x
        (B, N, C), float32, float16 or bfloat16, any strides of slices and transposes; is written
        to, so no two places may be one element.
    indices
        (B, K), as in :func:`gather_rows`; -1 is skipped, and naming a row twice is an error of
        the caller (either value may win).
    rows
        (B, K, C), dtype and device of x, which it must not share an element with.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        x itself.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, shared memory, or (on a CPU) an index out of range; x
        is unchanged.
    TypeError
        On an unsupported dtype.
    RuntimeError
        If x requires a gradient while gradients are enabled, or was made under
        ``torch.inference_mode()`` and is not written to there.
    """
    call("scatter_rows_", x, indices, rows, backend=backend)
    return x


def gather_layer_norm(
    x: Tensor,
    indices: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    backend: str | None = None,
) -> Tensor:
    """Layer norm of chosen rows, without normalising the others.

    Parameters
    ----------
    x
        (B, N, C), float32, float16 or bfloat16, any strides.
    indices
        (B, K), as in :func:`gather_rows`.
    weight, bias
        (C,) each or None, in any of the three dtypes.
    eps
        Added to the variance, at least 0.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, K, C) in the dtype of x; rows of index -1 are zeros. The arithmetic is float32.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, a negative eps, or (on a CPU) an index out of range.
    TypeError
        On an unsupported dtype.
    """
    op = "gather_layer_norm"
    eps = number(op, "eps", eps)
    rows: Tensor = call(op, x, indices, weight, bias, eps, backend=backend)
    return rows


def scatter_residual(
    base: Tensor, update: Tensor, indices: Tensor, rows: Tensor, *, backend: str | None = None
) -> Tensor:
    """Add an update to a residual stream, with chosen rows of the update replaced.

    ``out = base + update'``, where ``update'`` is ``update`` with ``rows`` written at
    ``indices``. One pass over memory; the sum is float32 and rounded once.

    Parameters
    ----------
    base
        Residual stream, (B, N, C), float32, float16 or bfloat16, any strides.
    update
        What is added, (B, N, C), or (N, C) for the whole batch.
    indices
        (B, K), as in :func:`gather_rows`; -1 is skipped.
    rows
        Replacement rows, (B, K, C).
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, N, C) contiguous, in the dtype of base.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or (on a CPU) an index out of range.
    TypeError
        On an unsupported dtype or different ones.
    """
    out: Tensor = call("scatter_residual", base, update, indices, rows, backend=backend)
    return out


def _check_rows_of(op: str, x: Tensor, indices: Tensor, name: str = "x") -> None:
    check_float(op, name, x, 3)
    check_indices(op, indices, x.shape[0], x.shape[1])
    check_device(op, "indices", indices, name, x)


def _check_gather(x: Tensor, indices: Tensor) -> None:
    _check_rows_of("gather_rows", x, indices)


def _check_scatter(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    _check_rows_of("scatter_rows_", x, indices)
    check_same("scatter_rows_", "rows", rows, "x", x)
    check_shape("scatter_rows_", "rows", rows, (*indices.shape, x.shape[2]))
    if torch.is_grad_enabled() and (x.requires_grad or rows.requires_grad):
        raise RuntimeError("`scatter_rows_` is for inference only: call it under torch.no_grad()")


def _check_layer_norm(
    x: Tensor, indices: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> None:
    op = "gather_layer_norm"
    _check_rows_of(op, x, indices)
    check_channels(op, "weight", weight, "x", x)
    check_channels(op, "bias", bias, "x", x)
    check_eps(op, eps)


def _check_residual(base: Tensor, update: Tensor, indices: Tensor, rows: Tensor) -> None:
    op = "scatter_residual"
    _check_rows_of(op, base, indices, name="base")
    check_same(op, "update", update, "base", base)
    check_same(op, "rows", rows, "base", base)
    check_shape(op, "update", update, tuple(base.shape), tuple(base.shape[1:]))
    check_shape(op, "rows", rows, (*indices.shape, base.shape[2]))


def _fake_gather(x: Tensor, indices: Tensor) -> Tensor:
    return x.new_empty((*indices.shape, x.shape[2]))


def _fake_scatter(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    return None


def _fake_layer_norm(
    x: Tensor, indices: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    return x.new_empty((*indices.shape, x.shape[2]))


def _fake_residual(base: Tensor, update: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return base.new_empty(base.shape)


def _tokens(x: Tensor, *_: object) -> int:
    return x.shape[1]


for _name, _run, _fake, _check in (
    ("gather_rows", _reference.gather_rows, _fake_gather, _check_gather),
    ("scatter_rows_", _reference.scatter_rows_, _fake_scatter, _check_scatter),
    ("gather_layer_norm", _reference.gather_layer_norm, _fake_layer_norm, _check_layer_norm),
    ("scatter_residual", _reference.scatter_residual, _fake_residual, _check_residual),
):
    register(_name, _run, _fake, _check, indices="indices", limit=_tokens)
