# SPDX-License-Identifier: Apache-2.0
"""Steps of a block that one kernel does on a GPU, wherever its modules do nothing else."""

from __future__ import annotations

from typing import cast, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from stc_kernels import add_layer_norm, bias_gelu, gather_layer_norm, gather_rows
from stc_video.towers.plain import is_plain, is_plain_linear, is_untouched

#: types of devices on which one kernel is faster than two
_DEVICES = frozenset({"cuda"})
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: transformers' activations, by class -> the same in `bias_gelu`; CLIP's is three launches in torch
_GELUS = {
    "GELUActivation": "none",
    "GELUTanh": "tanh",
    "PytorchGELUTanh": "tanh",
    "QuickGELUActivation": "quick",
}


@overload
def add_and_normalise(x: Tensor, branch: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]: ...


@overload
def add_and_normalise(
    x: Tensor, branch: Tensor, norm: nn.Module | None
) -> tuple[Tensor, Tensor | None]: ...


def add_and_normalise(
    x: Tensor, branch: Tensor, norm: nn.Module | None
) -> tuple[Tensor, Tensor | None]:
    """Add a branch to the residual stream, and normalise the sum for what comes next.

    The sum is rounded to the dtype of ``x`` before it is normalised, as it is in two steps; the
    norm itself may differ in the last bit.

    Parameters
    ----------
    x, branch
        (B, K, C) each.
    norm
        The norm of the next sublayer, or None if there is none. It is called as it is, unless
        calling it would do nothing but normalise.

    Returns
    -------
    tuple of Tensor
        ``x + branch`` and its norm, None without one.
    """
    if norm is None:
        return x + branch, None
    if isinstance(norm, nn.LayerNorm) and _may_fuse(x, branch, norm):
        return add_layer_norm(x, branch, norm.weight, norm.bias, norm.eps)
    total = x + branch
    return total, norm(total)


def take_and_normalise(
    frames: Tensor, indices: Tensor | None, norm: nn.Module
) -> tuple[Tensor, Tensor]:
    """Take some rows of the residual stream, and normalise them for the first sublayer.

    Parameters
    ----------
    frames
        (B, N, C).
    indices
        (B, K) int32, -1 for a row that is of no use; None for all rows.
    norm
        As in :func:`add_and_normalise`.

    Returns
    -------
    tuple of Tensor
        The rows and their norms, (B, K, C) each.
    """
    if indices is None:
        return frames, norm(frames)
    if isinstance(norm, nn.LayerNorm) and _may_fuse(frames, frames, norm):
        weights = norm.weight, norm.bias
        return gather_rows(frames, indices), gather_layer_norm(frames, indices, *weights, norm.eps)
    rows = gather_rows(frames, indices)
    return rows, norm(rows)


def feed_forward(mlp: nn.Module, x: Tensor) -> Tensor:
    """Run an MLP on normalised rows (B, K, C), with its first bias and its GELU as one kernel.

    It is called as it is unless it is transformers' own of two linear layers with a GELU between
    them, and calling these would do nothing else. The product is rounded once before its bias is
    added and once behind the GELU, instead of with its bias and then behind the GELU.
    """
    branch: Tensor
    if x.device.type not in _DEVICES:
        branch = mlp(x)
        return branch
    layers = layers_of_mlp(mlp)
    if layers is None or not is_plain_linear(layers[0]) or not _may_use(x, layers[0]):
        return cast(Tensor, mlp(x))
    first, activation, second = layers
    approximate = _GELUS[type(activation).__name__]
    hidden = bias_gelu(linear(x, first.weight), first.bias, approximate=approximate)
    return cast(Tensor, second(hidden))


def layers_of_mlp(mlp: nn.Module) -> tuple[nn.Linear, nn.Module, nn.Module] | None:
    """Return what an MLP calls one after the other if it is transformers' own, with a GELU."""
    parts = mlp._modules
    first, second, activation = (parts.get(name) for name in ("fc1", "fc2", "activation_fn"))
    if (
        not isinstance(first, nn.Linear)
        or second is None
        or activation is None
        or type(activation).__name__ not in _GELUS
        or not _is_of_transformers(mlp)
        or not _is_of_transformers(activation)
    ):
        return None
    return first, activation, second


def _is_of_transformers(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformers.") and is_untouched(module)


def _may_fuse(x: Tensor, branch: Tensor, norm: nn.LayerNorm) -> bool:
    return (
        x.device.type in _DEVICES
        and is_plain(norm, nn.LayerNorm)
        and norm.normalized_shape == x.shape[-1:]
        and x.dtype == branch.dtype
        and x.shape == branch.shape
        and _may_use(x, norm)
    )


def _may_use(x: Tensor, module: nn.Module) -> bool:
    """Whether our kernels take rows (B, K, C) and the parameters of a module, and are faster."""
    return (
        x.device.type in _DEVICES
        and x.dim() == 3
        and x.dtype in _DTYPES
        and module.weight.dtype == x.dtype
        and not torch.is_grad_enabled()
    )
