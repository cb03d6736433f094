# SPDX-License-Identifier: Apache-2.0
"""``attention_column_mean``: the logits twice, in tiles; once for the rows' sums, once to divide.

The second pass has a program per head and block of keys, which adds up its columns in order; the
heads are summed at the end. Nothing is added atomically, so the result is the same bit for bit.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton import interpreted
from stc_kernels._triton._launch import launch
from stc_kernels._triton._tiles import dot, split_program, split_width


@triton.jit
def _load(base, row, rows, channel, row_stride, channel_stride, WIDTH: tl.constexpr):
    """Tile (R, C) of a head's rows."""
    mask = (row < rows)[:, None] & (channel < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * row_stride + channel[None, :] * channel_stride
    return tl.load(base + at, mask=mask, other=0.0)


@triton.jit
def _row_sums(
    query, key, highest_logits, row_sums, queries, tokens, heads, heads_per_group,
    query_frame, query_token, query_channel,
    key_frame, key_token, key_channel,
    scale,
    query_head: tl.constexpr, key_head: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """Highest logit of each row, in units of log 2, and its sum of powers.

    They are not put together into one logarithm, which would cost digits where logits are large.
    """
    pair, block = split_program(queries, BLOCK_QUERIES)
    frame = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    query += frame * query_frame + head * query_head
    key += frame * key_frame + (head // heads_per_group) * key_head
    row = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    main = tl.arange(0, MAIN)
    q = _load(query, row, queries, main, query_token, query_channel, WIDTH)
    if REST > 0:
        rest = MAIN + tl.arange(0, REST)
        q_rest = _load(query, row, queries, rest, query_token, query_channel, WIDTH)
    highest = tl.full([BLOCK_QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)
    for start in range(0, tokens, BLOCK_KEYS):
        token = start + tl.arange(0, BLOCK_KEYS)
        logits = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
        k = _load(key, token, tokens, main, key_token, key_channel, WIDTH)
        logits = dot(q, tl.trans(k), logits, INTERPRETED)
        if REST > 0:
            k_rest = _load(key, token, tokens, rest, key_token, key_channel, WIDTH)
            logits = dot(q_rest, tl.trans(k_rest), logits, INTERPRETED)
        logits = tl.where((token < tokens)[None, :], logits * scale, -float("inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        powers = tl.sum(tl.exp2(logits - shift[:, None]), 1)
        total = total * tl.exp2(highest - shift) + powers
        highest = higher
    at = pair.to(tl.int64) * queries + row
    tl.store(highest_logits + at, highest, mask=row < queries)
    tl.store(row_sums + at, total, mask=row < queries)


@triton.jit
def _column_sums(
    query, key, highest_logits, row_sums, sums, queries, tokens, heads, heads_per_group,
    query_frame, query_token, query_channel,
    key_frame, key_token, key_channel,
    scale,
    query_head: tl.constexpr, key_head: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    pair, block = split_program(tokens, BLOCK_KEYS)
    frame = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    query += frame * query_frame + head * query_head
    key += frame * key_frame + (head // heads_per_group) * key_head
    token = block * BLOCK_KEYS + tl.arange(0, BLOCK_KEYS)
    main = tl.arange(0, MAIN)
    k = tl.trans(_load(key, token, tokens, main, key_token, key_channel, WIDTH))
    if REST > 0:
        rest = MAIN + tl.arange(0, REST)
        k_rest = tl.trans(_load(key, token, tokens, rest, key_token, key_channel, WIDTH))
    highest_logits += pair.to(tl.int64) * queries
    row_sums += pair.to(tl.int64) * queries
    total = tl.zeros([BLOCK_KEYS], tl.float32)
    for start in range(0, queries, BLOCK_QUERIES):
        row = start + tl.arange(0, BLOCK_QUERIES)
        logits = tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32)
        q = _load(query, row, queries, main, query_token, query_channel, WIDTH)
        logits = dot(q, k, logits, INTERPRETED)
        if REST > 0:
            q_rest = _load(query, row, queries, rest, query_token, query_channel, WIDTH)
            logits = dot(q_rest, k_rest, logits, INTERPRETED)
        highest = tl.load(highest_logits + row, mask=row < queries, other=0.0)
        row_sum = tl.load(row_sums + row, mask=row < queries, other=1.0)
        given = tl.exp2(logits * scale - highest[:, None]) / row_sum[:, None]
        # Whatever comes of the zeros beyond the last query: of an infinite key it would be NaN.
        total += tl.sum(tl.where((row < queries)[:, None], given, 0.0), 0)
    at = sums + pair.to(tl.int64) * tokens + token
    tl.store(at, total, mask=token < tokens)


def attention_column_mean(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean over heads and queries of softmax(scale * query key^T)."""
    batch, queries, heads, width = query.shape
    tokens, groups = key.shape[1:3]
    sums = torch.empty((batch, heads, tokens), dtype=torch.float32, device=query.device)
    if sums.numel() == 0:
        return sums.sum(1)
    highest = sums.new_empty((batch, heads, queries))
    row_sums = torch.empty_like(highest)
    partial = (highest, row_sums)
    main, rest = split_width(width)
    kernel = "column_mean_float32" if query.dtype == torch.float32 else "column_mean"
    parameters = _tuning.parameters(kernel, query.device, tokens=tokens, heads=batch * heads)
    given = (
        queries,
        tokens,
        heads,
        heads // groups,
        *(query.stride(axis) for axis in (0, 1, 3)),
        *(key.stride(axis) for axis in (0, 1, 3)),
        scale * math.log2(math.e),
    )
    constants = {
        "query_head": query.stride(2),
        "key_head": key.stride(2),
        "WIDTH": width,
        "MAIN": main,
        "REST": rest,
        "INTERPRETED": interpreted(),
    }
    programs = batch * heads * triton.cdiv(queries, parameters["BLOCK_QUERIES"])
    launch(_row_sums, programs, query, key, *partial, *given, parameters=parameters, **constants)
    programs = batch * heads * triton.cdiv(tokens, parameters["BLOCK_KEYS"])
    more = (*partial, sums, *given)
    launch(_column_sums, programs, query, key, *more, parameters=parameters, **constants)
    return sums.sum(1) / (heads * queries)
