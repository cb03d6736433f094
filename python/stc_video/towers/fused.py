# SPDX-License-Identifier: Apache-2.0
"""Steps of a block that one kernel does on a GPU, wherever its modules do nothing else."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from stc_kernels import add_layer_norm
from stc_video.towers.block import is_plain

__all__ = ["add_and_normalise"]

#: types of devices on which one kernel is faster than two
_DEVICES = frozenset({"cuda"})
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


def _may_fuse(x: Tensor, branch: Tensor, norm: nn.LayerNorm) -> bool:
    return (
        x.device.type in _DEVICES
        and is_plain(norm, nn.LayerNorm)
        and norm.normalized_shape == x.shape[-1:]
        and x.dtype == branch.dtype
        and x.dtype in _DTYPES
        and norm.weight.dtype == x.dtype
        and x.shape == branch.shape
        and not torch.is_grad_enabled()
    )
