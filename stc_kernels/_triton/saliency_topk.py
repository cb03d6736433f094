# SPDX-License-Identifier: Apache-2.0
"""``saliency_topk``: the tokens are read once for the frame's anchor and once for the scores.

The second read is of a frame of a few megabytes at most, which is still in the L2 cache unless
many frames are scored at once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._selection import select_highest

#: Norms are at least this.
_EPSILON = tl.constexpr(1e-12)


@triton.jit
def _load_tile(token_at, alive, channel, channels, stride, mask, CHANNELS: tl.constexpr):
    """Float32 tile of tokens, zero in the channels that are not looked at."""
    inside = alive[:, None] & (channel < channels)[None, :]
    x = tl.load(token_at[:, None] + channel[None, :] * stride, mask=inside, other=0.0)
    x = x.to(tl.float32)
    if CHANNELS:
        used = tl.load(mask + channel, mask=channel < channels, other=0) != 0
        x = tl.where(used[None, :], x, 0.0)
    return x


@triton.jit
def _load_vector(vector, channel, channels, mask, CHANNELS: tl.constexpr):
    """Float32 vector, zero in the channels that are not looked at."""
    x = tl.load(vector + channel, mask=channel < channels, other=0.0).to(tl.float32)
    if CHANNELS:
        used = tl.load(mask + channel, mask=channel < channels, other=0) != 0
        x = tl.where(used, x, 0.0)
    return x


@triton.jit
def _partial_anchors(
    tokens,
    mask,
    inverse_norms,
    partials,
    count,
    channels,
    parts,
    frame_stride,
    token_stride,
    channel_stride,
    CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Inverse norm of each token, and the sum of a part's unit tokens."""
    part = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    token = part * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    alive = token < count
    token_at = tokens + frame * frame_stride + token.to(tl.int64) * token_stride
    lane = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    squares = tl.zeros([BLOCK_TOKENS, BLOCK_CHANNELS], tl.float32)
    for start in range(0, channels, BLOCK_CHANNELS):
        x = _load_tile(token_at, alive, start + lane, channels, channel_stride, mask, CHANNELS)
        squares += x * x
    inverse = 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(squares, 1)), _EPSILON)
    tl.store(inverse_norms + frame * count + token, inverse, mask=alive)
    # The same tile again, from the nearest cache.
    write_at = partials + (frame * parts + part) * channels
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + lane
        x = _load_tile(token_at, alive, channel, channels, channel_stride, mask, CHANNELS)
        unit = tl.where(alive[:, None], x * inverse[:, None], 0.0)
        tl.store(write_at + channel, tl.sum(unit, 0), mask=channel < channels)


@triton.jit
def _mean_anchors(
    partials,
    anchors,
    count,
    channels,
    parts,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Mean of the unit tokens of each frame."""
    frame = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    total = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, parts, BLOCK_TOKENS):
        part = start + tl.arange(0, BLOCK_TOKENS)
        at = partials + (frame * parts + part)[:, None] * channels + channel[None, :]
        inside = (part < parts)[:, None] & (channel < channels)[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0), 0)
    tl.store(anchors + frame * channels + channel, total / count, mask=channel < channels)


@triton.jit
def _gaussian(squared):
    """Sum of five Gaussians of widths 1/8 to 2."""
    return (
        tl.exp(-4.0 * squared)
        + tl.exp(-2.0 * squared)
        + tl.exp(-squared)
        + tl.exp(-0.5 * squared)
        + tl.exp(-0.25 * squared)
    )


@triton.jit
def _score(
    tokens,
    mask,
    memory,
    inverse_norms,
    anchors,
    scores,
    count,
    channels,
    alpha,
    frame_stride,
    token_stride,
    channel_stride,
    GAUSSIAN: tl.constexpr,
    MEMORY: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    frame = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    alive = token < count
    token_at = tokens + frame * frame_stride + token.to(tl.int64) * token_stride
    anchors += frame * channels
    lane = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    inverse = tl.load(inverse_norms + frame * count + token, mask=alive, other=0.0)

    memory_squares = tl.zeros([BLOCK_CHANNELS], tl.float32)
    anchor_squares = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + lane
        if MEMORY:
            past = _load_vector(memory, channel, channels, mask, CHANNELS)
            memory_squares += past * past
        anchor = tl.load(anchors + channel, mask=channel < channels, other=0.0)
        anchor_squares += anchor * anchor
    memory_inverse = 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(memory_squares, 0)), _EPSILON)
    anchor_inverse = 1.0 / tl.maximum(tl.sqrt_rn(tl.sum(anchor_squares, 0)), _EPSILON)
    if GAUSSIAN:
        anchor_inverse = 1.0  # the mean itself, not its direction

    # Squared distances to the anchors (gaussian), or dot products with them.
    to_past = tl.zeros([BLOCK_TOKENS, BLOCK_CHANNELS], tl.float32)
    to_frame = tl.zeros([BLOCK_TOKENS, BLOCK_CHANNELS], tl.float32)
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + lane
        x = _load_tile(token_at, alive, channel, channels, channel_stride, mask, CHANNELS)
        unit = x * inverse[:, None]
        anchor = tl.load(anchors + channel, mask=channel < channels, other=0.0) * anchor_inverse
        if GAUSSIAN:
            to_frame += (unit - anchor[None, :]) * (unit - anchor[None, :])
        else:
            to_frame += unit * anchor[None, :]
        if MEMORY:
            past = _load_vector(memory, channel, channels, mask, CHANNELS) * memory_inverse
            if GAUSSIAN:
                to_past += (unit - past[None, :]) * (unit - past[None, :])
            else:
                to_past += unit * past[None, :]
    if GAUSSIAN:
        score = -2.0 * _gaussian(tl.sum(to_frame, 1))
    else:
        score = 1.0 - tl.sum(to_frame, 1)
    if MEMORY:
        if GAUSSIAN:
            temporal = -2.0 * _gaussian(tl.sum(to_past, 1))
        else:
            temporal = 1.0 - tl.sum(to_past, 1)
        score = alpha * temporal + (1.0 - alpha) * score
    tl.store(scores + frame * count + token, score, mask=alive)


def saliency_topk(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Indices of the k tokens of each frame that differ most from the frame and the past."""
    scores = _scores(tokens, memory, method == "gaussian", alpha, channels)
    return select_highest(scores, k), scores


def _scores(
    tokens: Tensor, memory: Tensor | None, gaussian: bool, alpha: float, channels: Tensor | None
) -> Tensor:
    frames, count, width = tokens.shape
    scores = torch.empty((frames, count), dtype=torch.float32, device=tokens.device)
    if scores.numel() == 0:
        return scores
    parameters = _tuning.parameters(
        "saliency", tokens.device, frames=frames, tokens=count, channels=width
    )
    parts = triton.cdiv(count, parameters["BLOCK_TOKENS"])
    blocks = triton.cdiv(width, parameters["BLOCK_CHANNELS"])
    inverse_norms = torch.empty_like(scores)
    partials = scores.new_empty((frames, parts, width))
    anchors = scores.new_empty((frames, width))
    mask = tokens if channels is None else channels.contiguous().view(torch.uint8)
    masked = channels is not None
    launch(
        _partial_anchors,
        (parts, frames),
        tokens,
        mask,
        inverse_norms,
        partials,
        count,
        width,
        parts,
        *tokens.stride(),
        parameters=parameters,
        CHANNELS=masked,
    )
    launch(
        _mean_anchors,
        (blocks, frames),
        partials,
        anchors,
        count,
        width,
        parts,
        parameters=parameters,
    )
    launch(
        _score,
        (parts, frames),
        tokens,
        mask,
        tokens if memory is None else memory.contiguous(),
        inverse_norms,
        anchors,
        scores,
        count,
        width,
        alpha,
        *tokens.stride(),
        parameters=parameters,
        GAUSSIAN=gaussian,
        MEMORY=memory is not None,
        CHANNELS=masked,
    )
    return scores
