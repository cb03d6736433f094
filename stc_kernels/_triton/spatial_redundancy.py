# SPDX-License-Identifier: Apache-2.0
"""``spatial_redundancy``: a program takes a small patch of the grid.

Most neighbours of a patch's tokens are in the patch, so the five reads of each token are one from
memory and four from the nearest cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._tiles import split_program
from stc_kernels.reference.token_cosine import EPSILON


@triton.jit
def _spatial_redundancy(
    tokens, alive, out, height, width, channels,
    frame_stride, row_stride, column_stride, channel_stride,
    ALIVE: tl.constexpr, EPSILON: tl.constexpr, BLOCK_HEIGHT: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    group, across = split_program(width, BLOCK_WIDTH)
    down = tl.cdiv(height, BLOCK_HEIGHT)
    frame = (group // down).to(tl.int64)
    place = tl.arange(0, BLOCK_HEIGHT * BLOCK_WIDTH)
    row = group % down * BLOCK_HEIGHT + place // BLOCK_WIDTH
    column = across * BLOCK_WIDTH + place % BLOCK_WIDTH
    inside = (row < height) & (column < width)
    tokens += frame * frame_stride
    alive += frame * height * width
    own_at = tokens + row.to(tl.int64) * row_stride + column.to(tl.int64) * column_stride
    best = tl.full([BLOCK_HEIGHT * BLOCK_WIDTH], -float("inf"), tl.float32)
    for side in tl.static_range(4):
        other_row = row + (side == 0) - (side == 1)
        other_column = column + (side == 2) - (side == 3)
        there = inside & (other_row >= 0) & (other_row < height)
        there = there & (other_column >= 0) & (other_column < width)
        if ALIVE:
            flag = tl.load(alive + other_row * width + other_column, mask=there, other=0)
            there = there & (flag != 0)
        other_at = tokens + other_row.to(tl.int64) * row_stride
        other_at += other_column.to(tl.int64) * column_stride
        dot = tl.zeros([BLOCK_HEIGHT * BLOCK_WIDTH, BLOCK_CHANNELS], tl.float32)
        xx = tl.zeros([BLOCK_HEIGHT * BLOCK_WIDTH, BLOCK_CHANNELS], tl.float32)
        yy = tl.zeros([BLOCK_HEIGHT * BLOCK_WIDTH, BLOCK_CHANNELS], tl.float32)
        for start in range(0, channels, BLOCK_CHANNELS):
            channel = start + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
            mask = there[:, None] & (channel < channels)[None, :]
            offset = channel[None, :] * channel_stride
            x = tl.load(own_at[:, None] + offset, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(other_at[:, None] + offset, mask=mask, other=0.0).to(tl.float32)
            dot += x * y
            xx += x * x
            yy += y * y
        norm_x = tl.maximum(tl.sqrt_rn(tl.sum(xx, 1)), EPSILON)
        norm_y = tl.maximum(tl.sqrt_rn(tl.sum(yy, 1)), EPSILON)
        similarity = tl.sum(dot, 1) / (norm_x * norm_y)
        counts = there & (similarity == similarity)  # NaN does not count
        best = tl.maximum(best, tl.where(counts, similarity, -float("inf")))
    out_at = out + (frame * height + row) * width + column
    tl.store(out_at, best, mask=inside)


def spatial_redundancy(tokens: Tensor, alive: Tensor | None) -> Tensor:
    """Largest cosine of each token with one of its four neighbours."""
    frames, height, width, channels = tokens.shape
    out = torch.empty((frames, height, width), dtype=torch.float32, device=tokens.device)
    if out.numel() == 0:
        return out
    parameters = _tuning.parameters(
        "spatial_redundancy", tokens.device, tokens=out.numel(), channels=channels
    )
    across = triton.cdiv(width, parameters["BLOCK_WIDTH"])
    down = triton.cdiv(height, parameters["BLOCK_HEIGHT"])
    launch(
        _spatial_redundancy, frames * down * across,
        tokens, tokens if alive is None else alive.contiguous().view(torch.uint8), out, height,
        width, channels,
        *tokens.stride(),
        parameters=parameters, ALIVE=alive is not None, EPSILON=EPSILON,
    )  # fmt: skip
    return out
