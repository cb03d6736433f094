# SPDX-License-Identifier: Apache-2.0
"""Redundancy of a token: its largest cosine with a neighbour in the frame."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_float, check_mask
from stc_kernels.ops._register import call, register
from stc_kernels.reference.spatial_redundancy import spatial_redundancy as _reference


def spatial_redundancy(
    tokens: Tensor, alive: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Largest cosine of each token with one of its four neighbours.

    The spatial score of MSSAVT in StreamingAssistant (arXiv 2512.12560).

    Parameters
    ----------
    tokens
        (F, H, W, D) tokens on the grid of each frame, float32, float16 or bfloat16, any strides.
    alive
        (F, H, W) bool: which tokens count as neighbours; None for all. A token that is not alive
        has a score all the same.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    Tensor
        (F, H, W) float32 in [-1, 1], or -inf where a token has no living neighbour. A neighbour
        whose cosine is NaN does not count, so a token that holds a NaN scores -inf.

    Raises
    ------
    ValueError
        On a wrong shape or a mix of devices.
    TypeError
        On an unsupported dtype, or if ``alive`` is no bool mask.
    """
    redundancy: Tensor = call("spatial_redundancy", tokens, alive, backend=backend)
    return redundancy


def _check(tokens: Tensor, alive: Tensor | None) -> None:
    op = "spatial_redundancy"
    check_float(op, "tokens", tokens, 4)
    if alive is not None:
        check_mask(op, "alive", alive, "tokens", tokens, tuple(tokens.shape[:3]))


def _fake(tokens: Tensor, alive: Tensor | None) -> Tensor:
    return tokens.new_empty(tokens.shape[:3], dtype=torch.float32)


register("spatial_redundancy", _reference, _fake, _check)
