# SPDX-License-Identifier: Apache-2.0
"""Choice of the most informative tokens of each frame."""

from __future__ import annotations

import torch
from torch import Tensor

from stc_kernels._checks import (
    check_channels,
    check_float,
    check_mask,
    check_range,
    check_tokens,
    integer,
    number,
)
from stc_kernels.ops._register import call, register
from stc_kernels.reference.saliency_topk import saliency_topk as _reference

METHODS = ("gaussian", "dual_anchor")


def saliency_topk(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    *,
    method: str = "gaussian",
    alpha: float = 0.5,
    channels: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Find the k tokens of each frame that say most beyond the frame's mean and the past.

    The scoring of STC-Pruner (arXiv 2512.00891). With z the unit token and two anchors, the mean
    c of the frame's unit tokens and the unit memory a:

    - ``"dual_anchor"`` (the paper): :math:`\alpha(1-\cos(z,a)) + (1-\alpha)(1-\cos(z,c))`
    - ``"gaussian"`` (the paper's code): :math:`-2\alpha g(z,a) - 2(1-\alpha) g(z,c)` with
      :math:`g(z,c)=\sum_s \exp(-|z-c|^2/2s)`, s in 1/8, 1/4, 1/2, 1, 2. At alpha = 0.5 this is
      the plain (negated) sum of the code.

    Parameters
    ----------
    tokens
        (F, N, D), float32, float16 or bfloat16, any strides.
    memory
        Mean token of the past, (D,), of any length; None when there is no past, and then the
        frame's anchor alone decides.
    k
        How many tokens to keep per frame, from 1 to N.
    method
        ``"gaussian"`` or ``"dual_anchor"``.
    alpha
        Weight of the memory against the frame's mean, 0 to 1.
    channels
        (D,) bool, the channels to look at; None for all.
    backend
        Backend to use; see :func:`stc_kernels.use_backend`.

    Returns
    -------
    indices : Tensor
        (F, k) int32, ascending in each row. Ties go to the lower index; NaN scores rank last.
    scores : Tensor
        (F, N) float32, higher means kept.

    Raises
    ------
    ValueError
        On a wrong shape, a mix of devices, an unknown method, or k or alpha out of range.
    TypeError
        On an unsupported dtype.
    """
    op = "saliency_topk"
    k, alpha = integer(op, "k", k), number(op, "alpha", alpha)
    indices, scores = call(op, tokens, memory, k, method, alpha, channels, backend=backend)
    return indices, scores


def _check(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> None:
    op = "saliency_topk"
    check_float(op, "tokens", tokens, 3)
    count, width = tokens.shape[1:]
    check_tokens(op, count)
    check_channels(op, "memory", memory, "tokens", tokens)
    if channels is not None:
        check_mask(op, "channels", channels, "tokens", tokens, (width,))
    check_range(op, "k", k, min(1, count), count, "tokens")
    if method not in METHODS:
        raise ValueError(f"`{op}`: method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0.0 <= alpha <= 1.0:
        raise ValueError(f"`{op}`: alpha must be between 0 and 1, got {alpha}")


def _fake(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    frames, count = tokens.shape[:2]
    return (
        tokens.new_empty((frames, k), dtype=torch.int32),
        tokens.new_empty((frames, count), dtype=torch.float32),
    )


register("saliency_topk", _reference, _fake, _check)
