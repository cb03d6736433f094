# SPDX-License-Identifier: Apache-2.0
"""``add_layer_norm``, ``bias_gelu``, ``scatter_key_value_``: between two matrix products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._normalise import layer_norm_rows
from stc_kernels._triton._tiles import load_tokens, split_program


@triton.jit
def _add_layer_norm(
    base, update, weight, bias, scale, total, out, rows, count, channels,
    base_frame, base_token, base_channel,
    update_frame, update_token, update_channel,
    eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, SCALE: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    frame = (row // count).to(tl.int64)
    token = (row % count).to(tl.int64)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    base_at = base + (frame * base_frame + token * base_token)[:, None]
    update_at = update + (frame * update_frame + token * update_token)[:, None]
    x = tl.load(base_at + channel[None, :] * base_channel, mask=inside, other=0.0)
    delta = tl.load(update_at + channel[None, :] * update_channel, mask=inside, other=0.0)
    delta = delta.to(tl.float32)
    if SCALE:
        factor = tl.load(scale + channel, mask=channel < channels, other=0.0)
        delta *= factor.to(tl.float32)[None, :]
    write_at = row.to(tl.int64)[:, None] * channels + channel[None, :]
    # Rounded before the norm: the next block reads the sum in this dtype, too.
    rounded = (x.to(tl.float32) + delta).to(total.dtype.element_ty)
    tl.store(total + write_at, rounded, mask=inside)
    values = rounded.to(tl.float32)
    normed = layer_norm_rows(values, weight, bias, channel, channels, eps, WEIGHT, BIAS)
    tl.store(out + write_at, normed.to(out.dtype.element_ty), mask=inside)


def add_layer_norm(
    base: Tensor,
    update: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Sum of a residual stream and an update, and the layer norm of that sum."""
    batch, count, channels = base.shape
    total = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    out = torch.empty_like(total)
    if out.numel() == 0:
        return total, out
    rows = batch * count
    parameters = _tuning.parameters("layer_norm", base.device, rows=rows, channels=channels)
    launch(
        _add_layer_norm, triton.cdiv(rows, parameters["BLOCK_ROWS"]),
        base, update, base if weight is None else weight.contiguous(),
        base if bias is None else bias.contiguous(),
        base if scale is None else scale.contiguous(), total, out, rows, count, channels,
        *base.stride(),
        *update.stride(),
        eps,
        parameters=parameters, WEIGHT=weight is not None, BIAS=bias is not None,
        SCALE=scale is not None, BLOCK_CHANNELS=triton.next_power_of_2(channels),
    )  # fmt: skip
    return total, out


@triton.jit
def _bias_gelu(
    x, bias, out, rows, count, channels,
    x_frame, x_token, x_channel,
    APPROXIMATE: tl.constexpr, BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    part, block = split_program(rows, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = part * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    frame = (row // count).to(tl.int64)
    token = (row % count).to(tl.int64)
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    read_at = x + (frame * x_frame + token * x_token)[:, None] + channel[None, :] * x_channel
    y = tl.load(read_at, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    if APPROXIMATE == "none":
        result = 0.5 * y * (1.0 + tl.erf(y * 0.7071067811865476))
    elif APPROXIMATE == "tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2 u), and 2 sqrt(2 / pi) is 1.5957691216.
        result = y / (1.0 + tl.exp(-1.5957691216057308 * (y + 0.044715 * y * y * y)))
    else:
        result = y / (1.0 + tl.exp(-1.702 * y))
    write_at = out + row.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(write_at, result.to(out.dtype.element_ty), mask=inside)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    """GELU of x plus a bias."""
    batch, count, channels = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    rows = batch * count
    parameters = _tuning.parameters("bias_gelu", x.device, rows=rows, channels=channels)
    programs = triton.cdiv(rows, parameters["BLOCK_ROWS"])
    programs *= triton.cdiv(channels, parameters["BLOCK_CHANNELS"])
    launch(
        _bias_gelu, programs,
        x, x if bias is None else bias.contiguous(), out, rows, count, channels,
        *x.stride(),
        parameters=parameters, APPROXIMATE=approximate, BIAS=bias is not None,
    )  # fmt: skip
    return out


@triton.jit
def _add_bias(values, bias, channel, channels, BIAS: tl.constexpr):
    if BIAS:
        more = tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)
        return (values.to(tl.float32) + more[None, :]).to(values.dtype)
    else:
        return values


@triton.jit
def _scatter_key_value(
    key_cache, value_cache, indices, key, value, key_bias, value_bias, rows, count, tokens,
    channels,
    key_cache_frame, key_cache_token, key_cache_channel,
    value_cache_frame, value_cache_token, value_cache_channel,
    key_frame, key_token, key_channel,
    value_frame, value_token, value_channel,
    KEY_BIAS: tl.constexpr, VALUE_BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    part, block = split_program(rows, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = part * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    frame = (row // count).to(tl.int64)[:, None]
    place = (row % count).to(tl.int64)[:, None]
    token = load_tokens(indices, row, rows, tokens)[:, None]
    inside = (token >= 0) & (channel < channels)[None, :]
    column = channel[None, :]
    k_at = key + frame * key_frame + place * key_token + column * key_channel
    v_at = value + frame * value_frame + place * value_token + column * value_channel
    k = tl.load(k_at, mask=inside, other=0.0)
    v = tl.load(v_at, mask=inside, other=0.0)
    k = _add_bias(k, key_bias, channel, channels, KEY_BIAS)
    v = _add_bias(v, value_bias, channel, channels, VALUE_BIAS)
    k_to = key_cache + frame * key_cache_frame + token * key_cache_token
    v_to = value_cache + frame * value_cache_frame + token * value_cache_token
    tl.store(k_to + column * key_cache_channel, k, mask=inside)
    tl.store(v_to + column * value_cache_channel, v, mask=inside)


def scatter_key_value_(
    key_cache: Tensor,
    value_cache: Tensor,
    indices: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    value_bias: Tensor | None,
) -> None:
    """Write keys and values, each plus its bias, into the rows of two caches."""
    rows, channels = indices.numel(), key_cache.shape[2]
    if rows == 0:
        return
    parameters = _tuning.parameters("move_rows", key.device, rows=rows, channels=channels)
    programs = triton.cdiv(rows, parameters["BLOCK_ROWS"])
    programs *= triton.cdiv(channels, parameters["BLOCK_CHANNELS"])
    launch(
        _scatter_key_value, programs,
        key_cache, value_cache, indices.contiguous(), key, value,
        key if key_bias is None else key_bias.contiguous(),
        value if value_bias is None else value_bias.contiguous(), rows, indices.shape[1],
        key_cache.shape[1], channels,
        *key_cache.stride(),
        *value_cache.stride(),
        *key.stride(),
        *value.stride(),
        parameters=parameters, KEY_BIAS=key_bias is not None, VALUE_BIAS=value_bias is not None,
    )  # fmt: skip
    torch.autograd.graph.increment_version((key_cache, value_cache))
