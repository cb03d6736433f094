# SPDX-License-Identifier: Apache-2.0
"""Selection of the first k tokens of each frame by score, without sorting.

The k-th smallest of 32-bit keys is found by radix selection: four passes over the frame's scores
(which are in cache), each a histogram of one byte of those keys whose higher bytes are settled.
One more pass writes the positions of the smaller keys and, of the equal ones, of as many with the
lowest positions as are still missing, in ascending order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch


@triton.jit
def _keys(scores, token, tokens, pinned, HIGHEST: tl.constexpr):
    """Unsigned keys whose order is the order of selection: pinned, NaN (or NaN last), score."""
    score = tl.load(scores + token, mask=token < tokens, other=0.0)
    value = tl.where(score == 0.0, 0.0, score)  # -0 and 0 are equal
    if HIGHEST:
        value = tl.where(score == 0.0, 0.0, -score)
    bits = value.to(tl.int32, bitcast=True)
    # Turn the order of the magnitudes of negative numbers round, then make all unsigned.
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000
    if HIGHEST:
        key = tl.where(score != score, 0xFFFFFFFF, ordered)
    else:
        key = tl.where(score != score, 1, ordered)
    return tl.where(token < pinned, 0, key).to(tl.uint32)


@triton.jit
def select_in_frame(
    scores, indices, counts, frame, tokens, capacity, pinned, threshold,
    HIGHEST: tl.constexpr, BELOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Select in one frame, whose scores this program or an earlier launch has written."""
    scores += frame * tokens
    indices += frame * capacity
    lane = tl.arange(0, BLOCK)
    kept = capacity
    if BELOW:
        changed = 0
        for start in range(0, tokens, BLOCK):
            token = start + lane
            score = tl.load(scores + token, mask=token < tokens, other=0.0)
            # `not above` rather than `below`, so that NaN counts as changed.
            above = (score > threshold) & (token >= pinned)
            hit = (token < tokens) & ~above
            changed += tl.sum(hit.to(tl.int32), 0)
        tl.store(counts + frame, changed)
        kept = tl.minimum(changed, capacity)

    limit = tl.zeros([], tl.uint32)
    missing = kept
    digits = tl.arange(0, 256)
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        histogram = tl.zeros([256], tl.int32)
        for start in range(0, tokens, BLOCK):
            token = start + lane
            key = _keys(scores, token, tokens, pinned, HIGHEST)
            open_ = token < tokens
            if step > 0:
                open_ = open_ & ((key >> (shift + 8)) == (limit >> (shift + 8)))
            digit = ((key >> shift) & 0xFF).to(tl.int32)
            histogram += tl.histogram(digit, 256, mask=open_)
        reached = tl.cumsum(histogram, 0)
        found = tl.sum((reached < missing).to(tl.int32), 0)
        missing -= tl.sum(tl.where(digits < found, histogram, 0), 0)
        limit = limit | (found.to(tl.uint32) << shift)

    written = 0
    equal_before = 0
    for start in range(0, tokens, BLOCK):
        token = start + lane
        key = _keys(scores, token, tokens, pinned, HIGHEST)
        equal = ((token < tokens) & (key == limit)).to(tl.int32)
        among_equal = equal_before + tl.cumsum(equal, 0)
        take = (token < tokens) & ((key < limit) | ((equal > 0) & (among_equal <= missing)))
        place = written + tl.cumsum(take.to(tl.int32), 0) - 1
        tl.store(indices + place, token, mask=take)
        equal_before += tl.sum(equal, 0)
        written += tl.sum(take.to(tl.int32), 0)
    if BELOW:
        for start in range(0, capacity, BLOCK):
            place = start + lane
            tl.store(indices + place, -1, mask=(place >= kept) & (place < capacity))


@triton.jit
def _select(
    scores, indices, counts, tokens, capacity, pinned, threshold,
    HIGHEST: tl.constexpr, BELOW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    select_in_frame(
        scores, indices, counts, frame, tokens, capacity, pinned, threshold, HIGHEST, BELOW, BLOCK
    )


def _run(
    scores: Tensor, capacity: int, pinned: int, threshold: float | None, highest: bool
) -> tuple[Tensor, Tensor]:
    """Launch the selection on contiguous scores (F, N) float32."""
    frames, tokens = scores.shape
    indices = scores.new_empty((frames, capacity), dtype=torch.int32)
    counts = scores.new_empty((frames,), dtype=torch.int32)
    if tokens == 0:
        return indices, counts.zero_()
    launch(
        _select, frames,
        scores, indices, counts, tokens, capacity, pinned,
        0.0 if threshold is None else threshold,
        parameters=_tuning.parameters("select", scores.device, tokens=tokens), HIGHEST=highest,
        BELOW=threshold is not None,
    )  # fmt: skip
    return indices, counts


def select_lowest(scores: Tensor, k: int, pinned: int = 0) -> Tensor:
    """Indices (F, k) of the lowest scores, pinned tokens first, then NaN."""
    return _run(scores, k, pinned, None, highest=False)[0]


def select_highest(scores: Tensor, k: int) -> Tensor:
    """Indices (F, k) of the highest scores, NaN last."""
    return _run(scores, k, 0, None, highest=True)[0]


def select_below(
    scores: Tensor, threshold: float, capacity: int, pinned: int
) -> tuple[Tensor, Tensor]:
    """Indices (F, capacity) of scores at or below a threshold, and how many there are (F,)."""
    return _run(scores, capacity, pinned, threshold, highest=False)
