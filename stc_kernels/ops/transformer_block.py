# SPDX-License-Identifier: Apache-2.0
"""The steps of a transformer block between its matrix products, each fused into one pass."""

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
from stc_kernels.reference import transformer_block as _reference

APPROXIMATIONS = ("none", "tanh", "quick")


def add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    scale: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Add an update to a residual stream and normalise the sum for the next sublayer.

    Parameters
    ----------
    base
        Residual stream, (B, K, C), float32, float16 or bfloat16, any strides.
    update
        What is added, (B, K, C), dtype and device of base.
    weight, bias
        Of the layer norm, (C,) each or None, in any of the three dtypes.
    eps
        Added to the variance, at least 0.
    scale
        (C,) factor of the update (LayerScale), or None.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    total : Tensor
        (B, K, C) contiguous, ``base + scale * update``, rounded once to the dtype of base.
    normed : Tensor
        (B, K, C) contiguous, the layer norm of ``total``. The arithmetic is float32.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or a negative eps.
    TypeError
        On an unsupported dtype or different ones.
    """
    op = "add_layer_norm"
    eps = number(op, "eps", eps)
    total, normed = call(op, base, update, weight, bias, eps, scale, backend=backend)
    return total, normed


def bias_gelu(
    x: Tensor, bias: Tensor | None, *, approximate: str = "none", backend: str | None = None
) -> Tensor:
    r"""GELU of x plus a bias, for the output of a matrix product without one.

    Parameters
    ----------
    x
        (B, K, C), float32, float16 or bfloat16, any strides.
    bias
        (C,) in any of the three dtypes, or None.
    approximate
        ``"none"`` (error function), ``"tanh"``, or ``"quick"`` (:math:`x\,\sigma(1.702 x)`, CLIP).
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, K, C) contiguous, in the dtype of x. The arithmetic is float32.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or an unknown approximation.
    TypeError
        On an unsupported dtype.
    """
    out: Tensor = call("bias_gelu", x, bias, approximate, backend=backend)
    return out


def scatter_key_value_(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_bias: Tensor | None = None,
    value_bias: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Write the new keys and values of chosen tokens into a stream's cache, in place.

    Key and value may be views of one fused projection; adding its bias here saves a pass.

    Parameters
    ----------
    key_cache, value_cache
        (B, N, C) each, float32, float16 or bfloat16, any strides of slices and transposes; both
        are written to, so no two places may be one element.
    indices
        (B, K) int32 or int64 in [0, N); -1 is skipped, and naming a token twice is an error of the
        caller (either value may win). On a CPU an index out of range raises.
    key, value
        (B, K, C) each, dtype and device of the caches, which they must not share an element with.
    key_bias, value_bias
        (C,) each, in any of the three dtypes, or None.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    tuple of Tensor
        The two caches themselves.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, shared memory, or (on a CPU) an index out of range; the
        caches are unchanged.
    TypeError
        On an unsupported dtype or different ones.
    RuntimeError
        If a tensor requires a gradient while gradients are enabled, or a cache was made under
        ``torch.inference_mode()`` and is not written to there.
    """
    arguments = (key_cache, value_cache, indices, key, value, key_bias, value_bias)
    call("scatter_key_value_", *arguments, backend=backend)
    return key_cache, value_cache


def _check_add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
) -> None:
    op = "add_layer_norm"
    check_float(op, "base", base, 3)
    check_same(op, "update", update, "base", base)
    check_shape(op, "update", update, tuple(base.shape))
    for name, parameter in (("weight", weight), ("bias", bias), ("scale", scale)):
        check_channels(op, name, parameter, "base", base)
    check_eps(op, eps)


def _check_bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> None:
    op = "bias_gelu"
    check_float(op, "x", x, 3)
    check_channels(op, "bias", bias, "x", x)
    if approximate not in APPROXIMATIONS:
        allowed = ", ".join(APPROXIMATIONS)
        raise ValueError(f"`{op}`: approximate must be one of {allowed}, got {approximate!r}")


def _check_scatter_key_value(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    op = "scatter_key_value_"
    check_float(op, "key_cache", key_cache, 3)
    check_same(op, "value_cache", value_cache, "key_cache", key_cache)
    check_shape(op, "value_cache", value_cache, tuple(key_cache.shape))
    check_indices(op, indices, *key_cache.shape[:2])
    check_device(op, "indices", indices, "key_cache", key_cache)
    for name, rows in (("key", key), ("value", value)):
        check_same(op, name, rows, "key_cache", key_cache)
        check_shape(op, name, rows, (*indices.shape, key_cache.shape[2]))
    for name, bias in (("key_bias", key_bias), ("value_bias", value_bias)):
        check_channels(op, name, bias, "key_cache", key_cache)
    if torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in (key_cache, value_cache, key, value)
    ):
        raise RuntimeError(f"`{op}` is for inference only: call it under torch.no_grad()")


def _fake_add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return base.new_empty(base.shape), base.new_empty(base.shape)


def _fake_bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return x.new_empty(x.shape)


def _fake_scatter_key_value(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    return None


register("add_layer_norm", _reference.add_layer_norm, _fake_add_layer_norm, _check_add_layer_norm)
register("bias_gelu", _reference.bias_gelu, _fake_bias_gelu, _check_bias_gelu)
register(
    "scatter_key_value_",
    _reference.scatter_key_value_,
    _fake_scatter_key_value,
    _check_scatter_key_value,
    indices="indices",
    limit=lambda key_cache, *_: key_cache.shape[1],
)
