# SPDX-License-Identifier: Apache-2.0
"""Packing of the kept tokens of several frames into one row of fixed capacity."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_float, check_mask, check_range, check_tokens, integer
from stc_kernels.ops._register import call, register
from stc_kernels.reference.compact_tokens import compact_tokens as _reference


def compact_tokens(
    tokens: Tensor, keep: Tensor, capacity: int, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Move the marked tokens of all frames together, without asking the device how many they are.

    Parameters
    ----------
    tokens
        (F, N, D), float32, float16 or bfloat16, any strides; F * N below 2**31.
    keep
        (F, N) bool, the tokens to keep.
    capacity
        Rows of the result, from 0 to F * N. If more are marked, the first ``capacity`` of them, in
        the order of frames and tokens, are packed.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    packed : Tensor
        (capacity, D) the marked tokens in order; zeros behind them.
    indices : Tensor
        (capacity,) int32, ascending, where each came from in the F * N tokens (frame * N + token);
        padded at the end with -1.
    counts : Tensor
        (F,) int32, how many were marked in each frame; together they may exceed the capacity.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or a capacity out of range.
    TypeError
        On an unsupported dtype, or if ``keep`` is no bool mask.
    """
    op = "compact_tokens"
    capacity = integer(op, "capacity", capacity)
    packed, indices, counts = call(op, tokens, keep, capacity, backend=backend)
    return packed, indices, counts


def _check(tokens: Tensor, keep: Tensor, capacity: int) -> None:
    op = "compact_tokens"
    check_float(op, "tokens", tokens, 3)
    check_mask(op, "keep", keep, "tokens", tokens, tuple(tokens.shape[:2]))
    total = tokens.shape[0] * tokens.shape[1]
    check_tokens(op, total)
    check_range(op, "capacity", capacity, 0, total, "tokens of all frames")


def _fake(tokens: Tensor, keep: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        tokens.new_empty((capacity, tokens.shape[2])),
        tokens.new_empty((capacity,), dtype=torch.int32),
        tokens.new_empty((tokens.shape[0],), dtype=torch.int32),
    )


register("compact_tokens", _reference, _fake, _check)
