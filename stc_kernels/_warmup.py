# SPDX-License-Identifier: Apache-2.0
"""Compile what a stream will use before its first frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from stc_kernels import _examples
from stc_kernels._dispatch import choose
from stc_kernels._schemas import OPS
from stc_kernels.ops._register import call


def warmup(
    shapes: Iterable[tuple[int, int, int]],
    *,
    k: Sequence[int] | None = None,
    heads: int | None = None,
    ops: Iterable[str] = OPS,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cuda",
) -> dict[str, str]:
    """Run operators once on random tensors, so that a stream meets no compilation.

    The Triton backend compiles a kernel when its first call has a new dtype, alignment or launch
    parameters, which takes tenths of a second each.

    Parameters
    ----------
    shapes
        (B, N, C) of the tokens that a stream will bring: batch, tokens, channels.
    k
        Numbers of chosen tokens; None for 1/16, 1/8, 1/4, 3/8 and 1/2 of the tokens.
    heads
        Attention heads, which divide C; None leaves ``sparse_query_attention`` out.
    ops
        Names of operators; all by default.
    dtype
        float32, float16 or bfloat16.
    device
        Where the stream will run.

    Returns
    -------
    dict
        The backend that ran, for each operator.

    Raises
    ------
    ValueError
        On an unknown operator, or a shape or k that the operators refuse.
    """
    ran: dict[str, str] = {}
    device = torch.device(device)
    names = tuple(ops)
    if unknown := [name for name in names if name not in OPS]:
        raise ValueError(f"warmup: ops must be among {', '.join(OPS)}, got {unknown[0]!r}")
    for batch, tokens, channels in shapes:
        if min(batch, tokens, channels) < 1:
            raise ValueError(
                f"warmup: shapes must have at least one frame, token and channel, got "
                f"{(batch, tokens, channels)}"
            )
        if heads is not None and channels % heads:
            raise ValueError(f"warmup: heads must divide {channels} (channels), got {heads}")
        for count in k or _bucket_sizes(tokens):
            if not 1 <= count <= tokens:
                raise ValueError(f"warmup: k must be between 1 and {tokens} (tokens), got {count}")
            geometry = _examples.Geometry(tokens, channels, count, heads or 1, batch)
            for op in names:
                if op == "sparse_query_attention" and heads is None:
                    continue
                ran[op] = choose(op, device.type)
                with torch.no_grad():
                    call(op, *_examples.arguments(op, geometry, dtype, device))
    return ran


def _bucket_sizes(tokens: int) -> list[int]:
    shares = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)
    return sorted({max(1, round(share * tokens)) for share in shares})
