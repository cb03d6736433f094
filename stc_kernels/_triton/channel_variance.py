# SPDX-License-Identifier: Apache-2.0
"""``channel_variance``: one read of the tokens, in parts whose moments are then merged.

A part's sum of squared deviations is taken from the part's own mean, and parts are merged by the
formula of Chan et al., so that a large common mean costs no digits. The parts are always the same
and merged in order: the result is the same bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._tiles import split_program


@triton.jit
def _merge(count, mean, squares, other_count, other_mean, other_squares):
    total = count + other_count
    share = tl.where(total > 0, other_count / tl.maximum(total, 1.0), 0.0)
    delta = other_mean - mean
    return (
        total,
        mean + delta * share,
        squares + other_squares + delta * delta * count * share,
    )


@triton.jit
def _moments(
    tokens, means, squares, rows, count, channels, rows_per_part,
    frame_stride, token_stride, channel_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    block, part = split_program(rows, rows_per_part)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    first = part * rows_per_part
    last = tl.minimum(first + rows_per_part, rows)
    seen = tl.zeros([BLOCK_CHANNELS], tl.float32)
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    square = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(first, last, BLOCK_ROWS):
        row = start + tl.arange(0, BLOCK_ROWS)
        inside = (row < last)[:, None] & (channel < channels)[None, :]
        at = (row // count).to(tl.int64) * frame_stride + (row % count).to(tl.int64) * token_stride
        x = tl.load(
            tokens + at[:, None] + channel[None, :] * channel_stride, mask=inside, other=0.0
        )
        x = x.to(tl.float32)
        here = tl.minimum(last - start, BLOCK_ROWS).to(tl.float32)
        block_mean = tl.sum(x, 0) / here
        centred = tl.where(inside, x - block_mean[None, :], 0.0)
        block_square = tl.sum(centred * centred, 0)
        seen, mean, square = _merge(seen, mean, square, here, block_mean, block_square)
    write_at = part.to(tl.int64) * channels + channel
    tl.store(means + write_at, mean, mask=channel < channels)
    tl.store(squares + write_at, square, mask=channel < channels)


@triton.jit
def _merge_parts(
    means, squares, variance, rows, channels, parts, rows_per_part, BLOCK_CHANNELS: tl.constexpr
):
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    inside = channel < channels
    seen = tl.zeros([BLOCK_CHANNELS], tl.float32)
    mean = tl.zeros([BLOCK_CHANNELS], tl.float32)
    square = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for part in range(0, parts):
        here = tl.minimum(rows - part * rows_per_part, rows_per_part).to(tl.float32)
        at = channel + part * channels
        block_mean = tl.load(means + at, mask=inside, other=0.0)
        block_square = tl.load(squares + at, mask=inside, other=0.0)
        seen, mean, square = _merge(seen, mean, square, here, block_mean, block_square)
    tl.store(variance + channel, square / rows, mask=inside)


def channel_variance(tokens: Tensor) -> Tensor:
    """Population variance of each channel over all tokens of all frames."""
    frames, count, channels = tokens.shape
    rows = frames * count
    parameters = dict(
        _tuning.parameters("channel_variance", tokens.device, rows=rows, channels=channels)
    )
    rows_per_part = parameters.pop("ROWS_PER_PART")
    parts = triton.cdiv(rows, rows_per_part)
    moments = torch.empty((2, parts, channels), dtype=torch.float32, device=tokens.device)
    variance = torch.empty((channels,), dtype=torch.float32, device=tokens.device)
    blocks = triton.cdiv(channels, parameters["BLOCK_CHANNELS"])
    launch(
        _moments, parts * blocks,
        tokens, moments[0], moments[1], rows, count, channels, rows_per_part,
        *tokens.stride(),
        parameters=parameters,
    )  # fmt: skip
    launch(
        _merge_parts, blocks,
        moments[0], moments[1], variance, rows, channels, parts, rows_per_part,
        parameters={name: parameters[name] for name in ("BLOCK_CHANNELS", "num_warps")},
    )  # fmt: skip
    return variance
