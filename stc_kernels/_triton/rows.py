# SPDX-License-Identifier: Apache-2.0
"""``gather_rows``, ``scatter_rows_``, ``gather_layer_norm`` and ``scatter_residual``.

All move bytes. A program takes a few rows and, where a row need not be seen as a whole, a part of
the channels.
"""

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
def _move_rows(
    source, indices, target, rows, count, tokens, channels,
    source_frame, source_token, source_channel,
    target_frame, target_token, target_channel,
    SCATTER: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    part, block = split_program(rows, BLOCK_ROWS)
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = part * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    frame = (row // count).to(tl.int64)
    place = (row % count).to(tl.int64)
    token = load_tokens(indices, row, rows, tokens)
    if SCATTER:
        read_token = place
        write_token = token
        write = token >= 0
    else:
        read_token = token
        write_token = place
        write = row < rows
    inside = (token >= 0)[:, None] & (channel < channels)[None, :]
    read_at = source + (frame * source_frame + read_token * source_token)[:, None]
    values = tl.load(read_at + channel[None, :] * source_channel, mask=inside, other=0.0)
    write_at = target + (frame * target_frame + write_token * target_token)[:, None]
    inside = write[:, None] & (channel < channels)[None, :]
    tl.store(write_at + channel[None, :] * target_channel, values, mask=inside)


def _move(source: Tensor, indices: Tensor, target: Tensor, scatter: bool) -> None:
    rows, channels = indices.numel(), target.shape[2]
    if rows == 0:
        return
    parameters = _tuning.parameters("move_rows", source.device, rows=rows, channels=channels)
    programs = triton.cdiv(rows, parameters["BLOCK_ROWS"])
    programs *= triton.cdiv(channels, parameters["BLOCK_CHANNELS"])
    launch(
        _move_rows, programs,
        source, indices.contiguous(), target, rows, indices.shape[1],
        (target if scatter else source).shape[1], channels,
        *source.stride(),
        *target.stride(),
        parameters=parameters, SCATTER=scatter,
    )  # fmt: skip


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x at the indices; rows of index -1 are zeros."""
    rows = x.new_empty((*indices.shape, x.shape[2]))
    _move(x, indices, rows, scatter=False)
    return rows


def scatter_rows_(x: Tensor, indices: Tensor, rows: Tensor) -> None:
    """Write rows into x in place; index -1 writes nothing."""
    _move(rows, indices, x, scatter=True)
    torch.autograd.graph.increment_version(x)


@triton.jit
def _gather_layer_norm(
    x, indices, weight, bias, out, rows, count, tokens, channels,
    x_frame, x_token, x_channel,
    eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    channel = tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    frame = (row // count).to(tl.int64)
    token = load_tokens(indices, row, rows, tokens)
    inside = (token >= 0)[:, None] & (channel < channels)[None, :]
    read_at = x + (frame * x_frame + token * x_token)[:, None] + channel[None, :] * x_channel
    values = tl.load(read_at, mask=inside, other=0.0).to(tl.float32)
    normed = layer_norm_rows(values, weight, bias, channel, channels, eps, WEIGHT, BIAS)
    normed = tl.where((token >= 0)[:, None], normed, 0.0)
    write_at = out + row.to(tl.int64)[:, None] * channels + channel[None, :]
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    tl.store(write_at, normed.to(out.dtype.element_ty), mask=inside)


def gather_layer_norm(
    x: Tensor, indices: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Layer norm of the gathered rows."""
    out = x.new_empty((*indices.shape, x.shape[2]))
    rows, channels = indices.numel(), x.shape[2]
    if out.numel() == 0:
        return out
    parameters = _tuning.parameters("layer_norm", x.device, rows=rows, channels=channels)
    launch(
        _gather_layer_norm, triton.cdiv(rows, parameters["BLOCK_ROWS"]),
        x, indices.contiguous(), x if weight is None else weight.contiguous(),
        x if bias is None else bias.contiguous(), out, rows, indices.shape[1], x.shape[1],
        channels,
        *x.stride(),
        eps,
        parameters=parameters, WEIGHT=weight is not None, BIAS=bias is not None,
        BLOCK_CHANNELS=triton.next_power_of_2(channels),
    )  # fmt: skip
    return out


@triton.jit
def _scatter_residual(
    base, update, indices, new_rows, out, rows, tokens, count, channels,
    base_frame, base_token, base_channel,
    update_frame, update_token, update_channel,
    new_frame, new_token, new_channel,
    BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_INDICES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    frame = (row // tokens).to(tl.int64)
    token = row % tokens
    # Where in the list each token stands, or -1: a search by all lanes at once. The list is read
    # once per program, which is little beside the rows, and needs no map in memory to be built.
    listed = tl.full([BLOCK_ROWS], -1, tl.int32)
    for start in range(0, count, BLOCK_INDICES):
        place = start + tl.arange(0, BLOCK_INDICES)
        inside = (row < rows)[:, None] & (place < count)[None, :]
        index = tl.load(indices + frame[:, None] * count + place[None, :], mask=inside, other=-1)
        hit = tl.where(index == token[:, None], place[None, :], -1)
        listed = tl.maximum(listed, tl.max(hit, 1))
    replaced = listed >= 0
    base_at = base + frame * base_frame + token.to(tl.int64) * base_token
    update_at = update + frame * update_frame + token.to(tl.int64) * update_token
    new_at = new_rows + frame * new_frame + listed.to(tl.int64) * new_token
    for start in range(0, channels, BLOCK_CHANNELS):
        channel = start + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
        inside = (row < rows)[:, None] & (channel < channels)[None, :]
        x = tl.load(base_at[:, None] + channel[None, :] * base_channel, mask=inside, other=0.0)
        old = tl.load(
            update_at[:, None] + channel[None, :] * update_channel,
            mask=inside & ~replaced[:, None],
            other=0.0,
        )
        new = tl.load(
            new_at[:, None] + channel[None, :] * new_channel,
            mask=inside & replaced[:, None],
            other=0.0,
        )
        delta = tl.where(replaced[:, None], new.to(tl.float32), old.to(tl.float32))
        total = x.to(tl.float32) + delta
        write_at = out + row.to(tl.int64)[:, None] * channels + channel[None, :]
        tl.store(write_at, total.to(out.dtype.element_ty), mask=inside)


def scatter_residual(base: Tensor, update: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Base plus update, where the listed rows of the update are replaced."""
    batch, tokens, channels = base.shape
    out = torch.empty(base.shape, dtype=base.dtype, device=base.device)
    if out.numel() == 0:
        return out
    total = batch * tokens
    parameters = _tuning.parameters("scatter_residual", base.device, rows=total, channels=channels)
    launch(
        _scatter_residual, triton.cdiv(total, parameters["BLOCK_ROWS"]),
        base, update, indices.contiguous(), rows, out, total, tokens, indices.shape[1], channels,
        *base.stride(),
        *update.expand(base.shape).stride(),
        *rows.stride(),
        parameters=parameters,
    )  # fmt: skip
    return out
