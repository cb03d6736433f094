# SPDX-License-Identifier: Apache-2.0
"""``sparse_query_attention``: an online softmax over blocks of keys.

A program holds a block of queries of one head.
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
from stc_kernels._triton._tiles import dot, load_tile, split_program, split_width

#: exponentials are powers of two
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _bias(bias_at, inside):
    """Bias of a block of keys, in units of log 2."""
    return tl.load(bias_at, mask=inside, other=0.0).to(tl.float32) * _LOG2E


@triton.jit
def _weigh(logits, inside, highest, total):
    """Weights of a block's logits, what earlier sums fade by, and the new maximum and sum."""
    logits = tl.where(inside[None, :], logits, -float("inf"))
    higher = tl.maximum(highest, tl.max(logits, 1))
    # Nothing to attend to so far: any finite value keeps the exponentials at zero.
    shift = tl.where(higher == -float("inf"), 0.0, higher)
    weights = tl.exp2(logits - shift[:, None])
    fade = tl.exp2(highest - shift)
    return weights, fade, higher, total * fade + tl.sum(weights, 1)


@triton.jit
def _attention(
    query, key, value, key_bias, out, queries, tokens, heads, heads_per_group,
    query_frame, query_token, query_channel, key_frame, key_token, key_channel,
    value_frame, value_token, value_channel, bias_frame, bias_token, scale,
    query_head: tl.constexpr, key_head: tl.constexpr, value_head: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, BIAS: tl.constexpr,
    INTERPRETED: tl.constexpr, BLOCK_QUERIES: tl.constexpr, BLOCK_KEYS: tl.constexpr,
):  # fmt: skip
    """``scale`` is in units of log 2, because the exponentials are powers of two.

    The strides of heads are constants: Triton asks of a variable only whether 16 divides it, and
    for a head of 72 channels it would load single elements.
    """
    pair, block = split_program(queries, BLOCK_QUERIES)
    frame, head = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    group = head // heads_per_group
    row = block * BLOCK_QUERIES + tl.arange(0, BLOCK_QUERIES)
    main = tl.arange(0, MAIN)
    key += frame * key_frame + group * key_head
    value += frame * value_frame + group * value_head
    out += frame * queries * heads * WIDTH + head * WIDTH
    row_at = row.to(tl.int64)[:, None]
    query_at = query + (frame * query_frame + head * query_head) + row_at * query_token
    live = (row < queries)[:, None]
    is_main = main < WIDTH
    q = load_tile(query_at + main[None, :] * query_channel, live, is_main[None, :])
    acc = tl.zeros([BLOCK_QUERIES, MAIN], tl.float32)
    if REST > 0:
        rest = MAIN + tl.arange(0, REST)
        is_rest = rest < WIDTH
        q_rest = load_tile(query_at + rest[None, :] * query_channel, live, is_rest[None, :])
        acc_rest = tl.zeros([BLOCK_QUERIES, REST], tl.float32)
    highest = tl.full([BLOCK_QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_QUERIES], tl.float32)

    for start in range(0, tokens, BLOCK_KEYS):
        token = start + tl.arange(0, BLOCK_KEYS)
        inside = token < tokens
        key_at = key + token.to(tl.int64)[None, :] * key_token
        k = load_tile(key_at + main[:, None] * key_channel, inside[None, :], is_main[:, None])
        logits = dot(q, k, tl.zeros([BLOCK_QUERIES, BLOCK_KEYS], tl.float32), INTERPRETED)
        if REST > 0:
            rest_at = key_at + rest[:, None] * key_channel
            k_rest = load_tile(rest_at, inside[None, :], is_rest[:, None])
            logits = dot(q_rest, k_rest, logits, INTERPRETED)
        logits *= scale
        if BIAS:
            bias_at = key_bias + frame * bias_frame + token.to(tl.int64) * bias_token
            logits += _bias(bias_at, inside)[None, :]
        weights, fade, highest, total = _weigh(logits, inside, highest, total)
        weights = weights.to(value.dtype.element_ty)
        value_at = value + token.to(tl.int64)[:, None] * value_token
        v = load_tile(value_at + main[None, :] * value_channel, inside[:, None], is_main[None, :])
        acc = dot(weights, v, acc * fade[:, None], INTERPRETED)
        if REST > 0:
            rest_at = value_at + rest[None, :] * value_channel
            v_rest = load_tile(rest_at, inside[:, None], is_rest[None, :])
            acc_rest = dot(weights, v_rest, acc_rest * fade[:, None], INTERPRETED)

    # Zero, not 0/0, where every key is masked; a NaN stays one.
    norm = tl.where(total == 0.0, 1.0, total)[:, None]
    out_at = out + row_at * heads * WIDTH
    tl.store(out_at + main[None, :], acc / norm, mask=live & is_main[None, :])
    if REST > 0:
        tl.store(out_at + rest[None, :], acc_rest / norm, mask=live & is_rest[None, :])


def sparse_query_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, key_bias: Tensor | None
) -> Tensor:
    """Attention of K queries over N keys, heads in groups, with a bias per key."""
    batch, queries, heads, width = query.shape
    tokens, groups = key.shape[1:3]
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if out.numel() == 0:
        return out
    bias_strides = (0, 0) if key_bias is None else key_bias.stride()
    main, rest = split_width(width)
    parameters = _tuning.parameters(
        "attention_float32" if query.dtype == torch.float32 else "attention",
        query.device,
        queries=queries,
        heads=batch * heads,
        width=width,
    )
    launch(
        _attention, batch * heads * triton.cdiv(queries, parameters["BLOCK_QUERIES"]),
        query, key, value, query if key_bias is None else key_bias, out, queries, tokens, heads,
        heads // groups,
        *(query.stride(axis) for axis in (0, 1, 3)),
        *(key.stride(axis) for axis in (0, 1, 3)),
        *(value.stride(axis) for axis in (0, 1, 3)),
        *bias_strides,
        scale * math.log2(math.e),
        parameters=parameters, query_head=query.stride(2), key_head=key.stride(2),
        value_head=value.stride(2), WIDTH=width, MAIN=main, REST=rest, BIAS=key_bias is not None,
        INTERPRETED=interpreted(),
    )  # fmt: skip
    return out
