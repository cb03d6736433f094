# SPDX-License-Identifier: Apache-2.0
"""Layer norm of rows that a program holds as a whole."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def layer_norm_rows(
    values, weight, bias, channel, channels, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr
):
    """Normalise float32 rows (R, C), zero beyond ``channels``; mean first, then the variance.

    The variance is not taken from the sum of squares, which cancels where the mean is large.
    """
    inside = channel < channels
    mean = tl.sum(values, 1) / channels
    centred = tl.where(inside[None, :], values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / channels
    normed = centred * (1.0 / tl.sqrt_rn(variance + eps))[:, None]
    if WEIGHT:
        normed *= tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        normed += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    return normed
