# SPDX-License-Identifier: Apache-2.0
"""``saliency_topk``: the tokens are read once for the frame's anchor and once for the scores.

The second read is of a frame of a few megabytes at most, which is still in the L2 cache unless
many frames are scored at once.

Three launches: sums of the tokens of each program, their mean, then the scores, where the last
program of a frame to arrive also selects. The mean stays a launch of its own: the last program of
the first launch would have to read the sums of all others alone, N / BLOCK_TOKENS * C of them,
which takes one multiprocessor longer than a launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._selection import select_in_frame
from stc_kernels._triton._tiles import split_program

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
    tokens, mask, inverse_norms, partials, arrivals, count, channels, parts,
    frame_stride, token_stride, channel_stride,
    CHANNELS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Inverse norm of each token, and the sum of a part's unit tokens; nobody has arrived yet."""
    frame, part = split_program(count, BLOCK_TOKENS)
    frame = frame.to(tl.int64)
    tl.store(arrivals + frame, 0, mask=part == 0)
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
    partials, anchors, count, channels, parts,
    BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Mean of the unit tokens of each frame."""
    frame, block = split_program(channels, BLOCK_CHANNELS)
    frame = frame.to(tl.int64)
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
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
def _inverse_norms(
    memory, anchors, channels, mask,
    MEMORY: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Inverse norms of the past and of the frame's anchor; without a past, anything."""
    lane = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
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
    return memory_inverse, anchor_inverse


@triton.jit
def _score_and_select(
    tokens, mask, memory, inverse_norms, anchors, scores, indices, arrivals, count, channels,
    parts, k, alpha,
    frame_stride, token_stride, channel_stride,
    GAUSSIAN: tl.constexpr, MEMORY: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Scores of a part's tokens; the last part of a frame to arrive selects among all."""
    frame, part = split_program(count, BLOCK_TOKENS)
    frame = frame.to(tl.int64)
    token = part * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    alive = token < count
    token_at = tokens + frame * frame_stride + token.to(tl.int64) * token_stride
    anchors += frame * channels
    lane = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    inverse = tl.load(inverse_norms + frame * count + token, mask=alive, other=0.0)

    memory_inverse, anchor_inverse = _inverse_norms(
        memory, anchors, channels, mask, MEMORY, CHANNELS, BLOCK_CHANNELS
    )
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
    # An exchange is done when it returns. A store need not be, and on AMD GPUs a barrier does not
    # wait for it, so that the program could arrive before its scores.
    bits_at = (scores + frame * count + token).to(tl.pointer_type(tl.int32), bitcast=True)
    tl.atomic_xchg(bits_at, score.to(tl.int32, bitcast=True), mask=alive, sem="acq_rel")
    tl.debug_barrier()
    if tl.atomic_add(arrivals + frame, 1, sem="acq_rel") == parts - 1:
        select_in_frame(scores, indices, arrivals, frame, count, k, 0, 0.0, True, False, BLOCK)


def saliency_topk(
    tokens: Tensor,
    memory: Tensor | None,
    k: int,
    method: str,
    alpha: float,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Indices of the k tokens of each frame that differ most from the frame and the past."""
    frames, count, width = tokens.shape
    scores = torch.empty((frames, count), dtype=torch.float32, device=tokens.device)
    indices = scores.new_empty((frames, k), dtype=torch.int32)
    if scores.numel() == 0:
        return indices, scores
    parameters = _tuning.parameters(
        "saliency", tokens.device, frames=frames, tokens=count, channels=width
    )
    select = _tuning.parameters("select", tokens.device, tokens=count)
    parts = triton.cdiv(count, parameters["BLOCK_TOKENS"])
    inverse_norms = torch.empty_like(scores)
    arrivals = indices.new_empty((frames,))
    mask = tokens if channels is None else channels.contiguous().view(torch.uint8)
    anchors = _anchors(tokens, mask, channels is not None, inverse_norms, arrivals, parameters)
    launch(
        _score_and_select, frames * parts,
        tokens, mask, tokens if memory is None else memory.contiguous(), inverse_norms, anchors,
        scores, indices, arrivals, count, width, parts, k, alpha,
        *tokens.stride(),
        parameters=parameters, GAUSSIAN=method == "gaussian", MEMORY=memory is not None,
        CHANNELS=channels is not None, BLOCK=select["BLOCK"],
    )  # fmt: skip
    return indices, scores


def _anchors(
    tokens: Tensor,
    mask: Tensor,
    masked: bool,
    inverse_norms: Tensor,
    arrivals: Tensor,
    parameters: _tuning.Parameters,
) -> Tensor:
    """Mean unit token (F, C) of each frame; fills ``inverse_norms`` and clears ``arrivals``."""
    frames, count, width = tokens.shape
    parts = triton.cdiv(count, parameters["BLOCK_TOKENS"])
    partials = inverse_norms.new_empty((frames, parts, width))
    anchors = inverse_norms.new_empty((frames, width))
    launch(
        _partial_anchors, frames * parts,
        tokens, mask, inverse_norms, partials, arrivals, count, width, parts,
        *tokens.stride(),
        parameters=parameters, CHANNELS=masked,
    )  # fmt: skip
    launch(
        _mean_anchors, frames * triton.cdiv(width, parameters["BLOCK_CHANNELS"]),
        partials, anchors, count, width, parts,
        parameters=parameters,
    )  # fmt: skip
    return anchors
