# SPDX-License-Identifier: Apache-2.0
"""``token_cosine``: reads both inputs once, writes four bytes per token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels.reference.token_cosine import EPSILON


@triton.jit
def _token_cosine(
    current, reference, similarity, rows, tokens, channels,
    current_frame, current_token, current_channel,
    reference_frame, reference_token, reference_channel,
    EPSILON: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    frame = (row // tokens).to(tl.int64)
    token = (row % tokens).to(tl.int64)
    x_row = current + frame * current_frame + token * current_token
    y_row = reference + frame * reference_frame + token * reference_token
    # Summed up lane by lane, so that the loop has no reduction across threads.
    dot = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    xx = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    yy = tl.zeros([BLOCK_ROWS, BLOCK_CHANNELS], tl.float32)
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        x_at = x_row[:, None] + channel[None, :] * current_channel
        y_at = y_row[:, None] + channel[None, :] * reference_channel
        x = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
        y = tl.load(y_at, mask=inside, other=0.0).to(tl.float32)
        dot += x * y
        xx += x * x
        yy += y * y
    norm_x = tl.maximum(tl.sqrt_rn(tl.sum(xx, 1)), EPSILON)
    norm_y = tl.maximum(tl.sqrt_rn(tl.sum(yy, 1)), EPSILON)
    tl.store(similarity + row, tl.sum(dot, 1) / (norm_x * norm_y), mask=row < rows)


def token_cosine(current: Tensor, reference: Tensor) -> Tensor:
    """Cosine of each token with the token of the same position in the reference."""
    batch, tokens, channels = current.shape
    similarity = torch.empty((batch, tokens), dtype=torch.float32, device=current.device)
    reference = reference.expand(current.shape)
    rows = batch * tokens
    parameters = _tuning.parameters("token_cosine", current.device, rows=rows, channels=channels)
    launch(
        _token_cosine, triton.cdiv(rows, parameters["BLOCK_ROWS"]),
        current, reference, similarity, rows, tokens, channels,
        *current.stride(),
        *reference.stride(),
        parameters=parameters, EPSILON=EPSILON,
    )  # fmt: skip
    return similarity
