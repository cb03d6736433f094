# SPDX-License-Identifier: Apache-2.0
"""Variance of each channel over the tokens of some frames."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_float
from stc_kernels.ops._register import call, register
from stc_kernels.reference.channel_variance import channel_variance as _reference


def channel_variance(tokens: Tensor, *, backend: str | None = None) -> Tensor:
    """Population variance of each channel over all tokens of all frames.

    STC-Pruner and VidCom2 score tokens on the channels that vary least.

    Parameters
    ----------
    tokens
        (F, N, D), float32, float16 or bfloat16, any strides, at least one token.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (D,) float32.

    Raises
    ------
    ValueError
        On a wrong shape or if there is no token.
    TypeError
        On an unsupported dtype.
    """
    variance: Tensor = call("channel_variance", tokens, backend=backend)
    return variance


def _check(tokens: Tensor) -> None:
    check_float("channel_variance", "tokens", tokens, 3)
    if tokens.shape[0] * tokens.shape[1] == 0:
        raise ValueError(
            f"`channel_variance`: tokens must hold at least one token, got shape "
            f"{tuple(tokens.shape)}"
        )


def _fake(tokens: Tensor) -> Tensor:
    return tokens.new_empty((tokens.shape[2],), dtype=torch.float32)


register("channel_variance", _reference, _fake, _check)
