# SPDX-License-Identifier: Apache-2.0
"""``bipartite_match`` and ``merge_tokens``.

The similarity matrix is computed in tiles, of which each candidate's best partner is all that is
kept. Merging collects the tokens of a row in order instead of adding them up atomically, so that
the result is the same bit for bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton import interpreted
from stc_kernels._triton._launch import launch
from stc_kernels._triton._selection import select_highest
from stc_kernels._triton._tiles import dot, load_tile, split_program
from stc_kernels.reference.token_cosine import EPSILON


@triton.jit
def _best_partners(
    metric, best, partners, similarity, tokens, channels, first_candidate, first_partner,
    candidates,
    frame_stride, token_stride, channel_stride,
    EPSILON: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK_CANDIDATES: tl.constexpr,
    BLOCK_PARTNERS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    frame, block = split_program(candidates, BLOCK_CANDIDATES)
    frame = frame.to(tl.int64)
    number = block * BLOCK_CANDIDATES + tl.arange(0, BLOCK_CANDIDATES)
    candidate = first_candidate + 2 * number
    alive = candidate < tokens
    metric += frame * frame_stride
    candidate_at = metric + candidate.to(tl.int64) * token_stride
    highest = tl.full([BLOCK_CANDIDATES], -float("inf"), tl.float32)
    choice = tl.zeros([BLOCK_CANDIDATES], tl.int32) + first_partner
    for start in range(first_partner, tokens, 2 * BLOCK_PARTNERS):
        partner = start + 2 * tl.arange(0, BLOCK_PARTNERS)
        there = partner < tokens
        partner_at = metric + partner.to(tl.int64) * token_stride
        product = tl.zeros([BLOCK_CANDIDATES, BLOCK_PARTNERS], tl.float32)
        xx = tl.zeros([BLOCK_CANDIDATES], tl.float32)
        yy = tl.zeros([BLOCK_PARTNERS], tl.float32)
        for channel_start in range(0, channels, BLOCK_CHANNELS):
            channel = channel_start + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
            inside = channel < channels
            x_at = candidate_at[:, None] + channel[None, :] * channel_stride
            y_at = partner_at[None, :] + channel[:, None] * channel_stride
            x = load_tile(x_at, alive[:, None], inside[None, :])
            y = load_tile(y_at, there[None, :], inside[:, None])
            product = dot(x, y, product, INTERPRETED)
            xx += tl.sum(x.to(tl.float32) * x.to(tl.float32), 1)
            yy += tl.sum(y.to(tl.float32) * y.to(tl.float32), 0)
        norm_x = tl.maximum(tl.sqrt_rn(xx), EPSILON)
        norm_y = tl.maximum(tl.sqrt_rn(yy), EPSILON)
        cosine = product / (norm_x[:, None] * norm_y[None, :])
        cosine = tl.where(there[None, :] & (cosine == cosine), cosine, -float("inf"))
        block_highest = tl.max(cosine, 1)
        equal = (cosine == block_highest[:, None]) & there[None, :]
        # The lowest of equal partners, and an earlier block before a later one.
        block_choice = tl.min(tl.where(equal, partner[None, :], tokens), 1)
        better = block_highest > highest
        highest = tl.where(better, block_highest, highest)
        choice = tl.where(better, block_choice, choice)
    tl.store(best + frame * candidates + number, highest, mask=alive)
    tl.store(partners + frame * candidates + number, choice, mask=alive)
    tl.store(similarity + frame * tokens + candidate, highest, mask=alive)


@triton.jit
def _mark_leaves(
    leaves, partners, link, tokens, r, first_candidate, candidates, BLOCK: tl.constexpr
):
    """Write the partner of each token that leaves; ``link`` is -1 for all others."""
    frame = tl.program_id(0).to(tl.int64)
    for start in range(0, r, BLOCK):
        place = start + tl.arange(0, BLOCK)
        number = tl.load(leaves + frame * r + place, mask=place < r, other=0)
        partner = tl.load(partners + frame * candidates + number, mask=place < r, other=0)
        candidate = first_candidate + 2 * number
        tl.store(link + frame * tokens + candidate, partner, mask=place < r)


@triton.jit
def _number_survivors(link, rows, kept, tokens, survivors, BLOCK: tl.constexpr):
    frame = tl.program_id(0).to(tl.int64)
    before = 0
    for start in range(0, tokens, BLOCK):
        token = start + tl.arange(0, BLOCK)
        inside = token < tokens
        stays = inside & (tl.load(link + frame * tokens + token, mask=inside, other=0) < 0)
        row = before + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(rows + frame * tokens + token, row, mask=inside)
        tl.store(kept + frame * survivors + row, token, mask=stays)
        before += tl.sum(stays.to(tl.int32), 0)


@triton.jit
def _follow_links(link, rows, source_map, tokens, BLOCK: tl.constexpr):
    frame, block = split_program(tokens, BLOCK)
    frame = frame.to(tl.int64)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = token < tokens
    partner = tl.load(link + frame * tokens + token, mask=inside, other=-1)
    target = tl.where(partner >= 0, partner, token)
    row = tl.load(rows + frame * tokens + target, mask=inside, other=0)
    tl.store(source_map + frame * tokens + token, row, mask=inside)


def bipartite_match(metric: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row that each token becomes part of, the survivors, and the similarities."""
    batch, tokens, channels = metric.shape
    first_candidate = protected + protected % 2
    first_partner = protected + (protected + 1) % 2
    candidates = max(0, (tokens - first_candidate + 1) // 2)
    source_map = metric.new_empty((batch, tokens), dtype=torch.int32)
    kept = metric.new_empty((batch, tokens - r), dtype=torch.int32)
    similarity = metric.new_full((batch, tokens), -torch.inf, dtype=torch.float32)
    if tokens == 0:
        return source_map, kept, similarity
    best = metric.new_empty((batch, candidates), dtype=torch.float32)
    partners = metric.new_empty((batch, candidates), dtype=torch.int32)
    kernel = "match_float32" if metric.dtype == torch.float32 else "match"
    parameters = _tuning.parameters(kernel, metric.device, tokens=tokens, channels=channels)
    launch(
        _best_partners, batch * triton.cdiv(candidates, parameters["BLOCK_CANDIDATES"]),
        metric, best, partners, similarity, tokens, channels, first_candidate, first_partner,
        candidates,
        *metric.stride(),
        parameters=parameters, EPSILON=EPSILON, INTERPRETED=interpreted(),
    )  # fmt: skip
    link = metric.new_full((batch, tokens), -1, dtype=torch.int32)
    rows = torch.empty_like(source_map)
    scan = _tuning.parameters("scan", metric.device, tokens=tokens)
    if r > 0:
        launch(
            _mark_leaves, batch,
            select_highest(best, r), partners, link, tokens, r, first_candidate, candidates,
            parameters=scan,
        )  # fmt: skip
    launch(_number_survivors, batch, link, rows, kept, tokens, tokens - r, parameters=scan)
    blocks = triton.cdiv(tokens, scan["BLOCK"])
    launch(_follow_links, batch * blocks, link, rows, source_map, tokens, parameters=scan)
    return source_map, kept, similarity


@triton.jit
def _merge_rows(
    tokens, source_map, sizes, merged, totals, places, count, channels,
    frame_stride, token_stride, channel_stride,
    size_frame, size_token,
    SIZES: tl.constexpr, BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program makes one row, by looking through the map for its tokens."""
    group, row = split_program(count, 1)
    blocks = tl.maximum(tl.cdiv(channels, BLOCK_CHANNELS), 1)
    frame = (group // blocks).to(tl.int64)
    block = group % blocks
    channel = block * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS).to(tl.int64)
    inside = channel < channels
    tokens += frame * frame_stride
    total = tl.zeros([], tl.float32)
    summed = tl.zeros([BLOCK_CHANNELS], tl.float32)
    for start in range(0, places, BLOCK):
        place = start + tl.arange(0, BLOCK)
        goes = tl.load(source_map + frame * places + place, mask=place < places, other=-1)
        ours = tl.where(goes == row, place, places)
        token = tl.min(ours, 0)
        while token < places:
            weight = 1.0
            if SIZES:
                weight = tl.load(sizes + frame * size_frame + token.to(tl.int64) * size_token)
            read_at = tokens + token.to(tl.int64) * token_stride + channel * channel_stride
            summed += weight * tl.load(read_at, mask=inside, other=0.0).to(tl.float32)
            total += weight
            ours = tl.where(ours == token, places, ours)
            token = tl.min(ours, 0)
    mean = tl.where(total == 0.0, 0.0, summed / total)
    out = frame * count + row
    tl.store(merged + out * channels + channel, mean.to(merged.dtype.element_ty), mask=inside)
    if block == 0:
        tl.store(totals + out, total)


def merge_tokens(
    tokens: Tensor, source_map: Tensor, count: int, sizes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Size-weighted mean of the tokens of each row, and the sizes summed up."""
    batch, places, channels = tokens.shape
    merged = tokens.new_empty((batch, count, channels))
    totals = tokens.new_empty((batch, count), dtype=torch.float32)
    if totals.numel() == 0:
        return merged, totals
    parameters = _tuning.parameters("merge", tokens.device, tokens=places, channels=channels)
    # At least one program per row, which writes its size, even where there are no channels.
    blocks = max(1, triton.cdiv(channels, parameters["BLOCK_CHANNELS"]))
    launch(
        _merge_rows, batch * blocks * count,
        tokens, source_map.contiguous(), totals if sizes is None else sizes, merged, totals,
        places, count, channels,
        *tokens.stride(),
        *((0, 0) if sizes is None else sizes.stride()),
        parameters=parameters, SIZES=sizes is not None,
    )  # fmt: skip
    return merged, totals
