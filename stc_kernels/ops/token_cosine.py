# SPDX-License-Identifier: Apache-2.0
"""Cosine similarity of each token with the one it is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_pair
from stc_kernels.ops._register import call, register
from stc_kernels.reference.token_cosine import token_cosine as _reference


def token_cosine(current: Tensor, reference: Tensor, *, backend: str | None = None) -> Tensor:
    """Cosine similarity of each token with the token at the same place in a reference.

    Parameters
    ----------
    current
        Tokens of the new frames, (B, N, C), float32, float16 or bfloat16, any strides.
    reference
        What they are compared with, (B, N, C), or (N, C) for one reference for the whole batch.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (B, N) float32 in [-1, 1]; 0 where a token is all zeros, NaN where it holds a NaN.

    Raises
    ------
    ValueError
        On a wrong shape or a mix of devices.
    TypeError
        On an unsupported dtype or two different ones.
    """
    similarity: Tensor = call("token_cosine", current, reference, backend=backend)
    return similarity


def _check(current: Tensor, reference: Tensor) -> None:
    check_pair("token_cosine", current, reference)


def _fake(current: Tensor, reference: Tensor) -> Tensor:
    return current.new_empty(current.shape[:2], dtype=torch.float32)


register("token_cosine", _reference, _fake, _check)
