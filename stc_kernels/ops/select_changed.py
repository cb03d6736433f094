# SPDX-License-Identifier: Apache-2.0
"""Choice of the tokens that changed: a fixed number of them, or those below a threshold."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import check_pair, check_range, integer, number
from stc_kernels.ops._register import call, register
from stc_kernels.reference.select_changed import select_changed as _reference
from stc_kernels.reference.select_changed import select_changed_below as _reference_below


def select_changed(
    current: Tensor, reference: Tensor, k: int, *, pinned: int = 0, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Find the k tokens of each frame that are least similar to a reference.

    Similarity is the cosine over all channels. This is the selection step of STC-Cacher
    (arXiv 2512.00891), with a defined order: ties go to the lower index, and a token whose
    similarity is NaN counts as changed most.

    Parameters
    ----------
    current
        Tokens of the new frames, (B, N, C), float32, float16 or bfloat16, any strides.
    reference
        What they are compared with, (B, N, C), or (N, C) for one reference for the whole batch.
    k
        How many tokens to choose per frame, from 1 to N.
    pinned
        The first ``pinned`` tokens (class token, registers) are always among the chosen; they
        count towards k.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    indices : Tensor
        (B, k) int32, ascending in each row.
    similarity : Tensor
        (B, N) float32.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or k or pinned out of range.
    TypeError
        On an unsupported dtype or two different ones.

    Examples
    --------
    >>> import torch, stc_kernels
    >>> before = torch.eye(4)[None]
    >>> after = before.clone()
    >>> after[0, 2] = -after[0, 2]
    >>> stc_kernels.select_changed(after, before, 1)[0]
    tensor([[2]], dtype=torch.int32)
    """
    op = "select_changed"
    k, pinned = integer(op, "k", k), integer(op, "pinned", pinned)
    indices, similarity = call(op, current, reference, k, pinned, backend=backend)
    return indices, similarity


def select_changed_below(
    current: Tensor,
    reference: Tensor,
    threshold: float,
    capacity: int,
    *,
    pinned: int = 0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find the tokens of each frame whose similarity to a reference is at or below a threshold.

    The number found differs from frame to frame; the result has a fixed shape all the same, so
    that no device synchronisation is needed.

    Parameters
    ----------
    current, reference, pinned, backend
        As in :func:`select_changed`; the pinned tokens are found whatever their similarity.
    threshold
        Cosine similarity at or below which a token counts as changed; NaN always does.
    capacity
        Size of the result per frame, from 1 to N. If more tokens changed, the least similar
        ``capacity`` of them are listed.

    Returns
    -------
    indices : Tensor
        (B, capacity) int32, ascending in each row, padded at the end with -1.
    counts : Tensor
        (B,) int32, the number of changed tokens, which may exceed the capacity.
    similarity : Tensor
        (B, N) float32.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, or capacity or pinned out of range.
    TypeError
        On an unsupported dtype or two different ones.
    """
    op = "select_changed_below"
    threshold = number(op, "threshold", threshold)
    capacity, pinned = integer(op, "capacity", capacity), integer(op, "pinned", pinned)
    indices, counts, similarity = call(
        op, current, reference, threshold, capacity, pinned, backend=backend
    )
    return indices, counts, similarity


def _check(current: Tensor, reference: Tensor, k: int, pinned: int) -> None:
    op = "select_changed"
    check_pair(op, current, reference)
    tokens = current.shape[1]
    check_range(op, "k", k, min(1, tokens), tokens, "tokens")
    check_range(op, "pinned", pinned, 0, k, "k")


def _check_below(
    current: Tensor, reference: Tensor, threshold: float, capacity: int, pinned: int
) -> None:
    op = "select_changed_below"
    check_pair(op, current, reference)
    tokens = current.shape[1]
    check_range(op, "capacity", capacity, min(1, tokens), tokens, "tokens")
    check_range(op, "pinned", pinned, 0, capacity, "capacity")
    if threshold != threshold:
        raise ValueError(f"`{op}`: threshold must be a number, got nan")


def _fake(current: Tensor, reference: Tensor, k: int, pinned: int) -> tuple[Tensor, Tensor]:
    batch, tokens = current.shape[:2]
    return (
        current.new_empty((batch, k), dtype=torch.int32),
        current.new_empty((batch, tokens), dtype=torch.float32),
    )


def _fake_below(
    current: Tensor, reference: Tensor, threshold: float, capacity: int, pinned: int
) -> tuple[Tensor, Tensor, Tensor]:
    indices, similarity = _fake(current, reference, capacity, pinned)
    return indices, current.new_empty((current.shape[0],), dtype=torch.int32), similarity


register("select_changed", _reference, _fake, _check)
register("select_changed_below", _reference_below, _fake_below, _check_below)
