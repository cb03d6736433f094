# SPDX-License-Identifier: Apache-2.0
"""``compact_tokens``: count per frame, list the marked tokens, copy their rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._tiles import split_program


@triton.jit
def _count_marked(keep, counts, tokens, BLOCK: tl.constexpr):
    frame = tl.program_id(0).to(tl.int64)
    marked = 0
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        flag = tl.load(keep + frame * tokens + token, mask=token < tokens, other=0)
        marked += tl.sum((flag != 0).to(tl.int32), 0)
    tl.store(counts + frame, marked)


@triton.jit
def _list_marked(keep, counts, indices, frames, tokens, capacity, BLOCK: tl.constexpr):
    """A program lists one frame, behind all frames before it, and fills its share of the end."""
    frame = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = 0
    total = 0
    for start in range(0, frames, BLOCK):
        count = tl.load(counts + start + lane, mask=start + lane < frames, other=0)
        before += tl.sum(tl.where(start + lane < frame, count, 0), 0)
        total += tl.sum(count, 0)
    for start in range(0, tokens, BLOCK):
        token = start + lane
        # Less than 2**31 in all, as the operator's checks have it.
        index = frame * tokens + token
        marked = (token < tokens) & (tl.load(keep + index, mask=token < tokens, other=0) != 0)
        place = before + tl.cumsum(marked.to(tl.int32), 0) - 1
        tl.store(indices + place, index, mask=marked & (place < capacity))
        before += tl.sum(marked.to(tl.int32), 0)
    for start in range(total + frame * BLOCK, capacity, frames * BLOCK):
        tl.store(indices + start + lane, -1, mask=start + lane < capacity)


@triton.jit
def _pack_rows(
    tokens, indices, packed, capacity, count, channels,
    frame_stride, token_stride, channel_stride,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    part, block = split_program(capacity, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = part * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    index = tl.load(indices + row, mask=row < capacity, other=-1)
    inside = (channel < channels)[None, :]
    at = (index // count).to(tl.int64) * frame_stride + (index % count).to(tl.int64) * token_stride
    read_at = tokens + at[:, None] + channel[None, :] * channel_stride
    values = tl.load(read_at, mask=(index >= 0)[:, None] & inside, other=0.0)
    write_at = packed + row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(write_at, values, mask=(row < capacity)[:, None] & inside)


def compact_tokens(tokens: Tensor, keep: Tensor, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """Marked tokens of all frames in one row, where they came from, and how many per frame."""
    frames, count, channels = tokens.shape
    packed = tokens.new_empty((capacity, channels))
    indices = tokens.new_empty((capacity,), dtype=torch.int32)
    counts = tokens.new_empty((frames,), dtype=torch.int32)
    flags = keep.contiguous().view(torch.uint8)
    parameters = _tuning.parameters("scan", tokens.device, tokens=count)
    launch(_count_marked, frames, flags, counts, count, parameters=parameters)
    if capacity == 0:
        return packed, indices, counts
    launch(
        _list_marked, frames,
        flags, counts, indices, frames, count, capacity,
        parameters=parameters,
    )  # fmt: skip
    parameters = _tuning.parameters("move_rows", tokens.device, rows=capacity, channels=channels)
    programs = triton.cdiv(capacity, parameters["BLOCK_ROWS"])
    programs *= triton.cdiv(channels, parameters["BLOCK_CHANNELS"])
    launch(
        _pack_rows, programs,
        tokens, indices, packed, capacity, count, channels,
        *tokens.stride(),
        parameters=parameters,
    )  # fmt: skip
    return packed, indices, counts
