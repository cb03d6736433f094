# SPDX-License-Identifier: Apache-2.0
"""``frames_to_patches`` and ``update_patches_``: along the rows, then across them.

In between a pixel is one word, with red in the low byte, so that it is read by one load. An update
has a pass before, which marks the patches that see a changed pixel; the two others then skip what
no marked patch needs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from stc_kernels import _tuning
from stc_kernels._triton._launch import launch
from stc_kernels._triton._tiles import split_program
from stc_kernels.reference.patches import BYTES, FRACTION_BITS


@triton.jit
def _start(taps, place, count, size, mask):
    """First pixel of a window, so that the window lies within the picture."""
    start = tl.load(taps + place * (count + 1), mask=mask, other=0)
    return tl.minimum(tl.maximum(start, 0), size - count)


@triton.jit
def _seen(taps, patch, pixels, count, size, mask):
    """First and last start of the windows of a patch's pixels."""
    low = tl.full(patch.shape, 2**31 - 1, tl.int32)
    high = tl.zeros(patch.shape, tl.int32)
    for pixel in range(0, pixels):
        start = _start(taps, patch * pixels + pixel, count, size, mask)
        low = tl.minimum(low, start)
        high = tl.maximum(high, start)
    return low, high


@triton.jit
def _byte(total, FRACTION_BITS: tl.constexpr):
    return tl.minimum(tl.maximum(total >> FRACTION_BITS, 0), 255)


@triton.jit
def _mark_changed_patches(
    pictures, previous, rows, columns, changed, height, width, row_taps, column_taps, down,
    across,
    patch_height, patch_width,
    frame_stride,
    row_stride,
    column_stride,
    channel_stride,
    before_frame, before_row, before_column, before_channel,
    BLOCK: tl.constexpr,
):  # fmt: skip
    patch = tl.program_id(0)
    frame = (patch // (down * across)).to(tl.int64)
    one = tl.zeros([1], tl.int32)
    everywhere = one == 0
    low, high = _seen(
        rows, one + patch // across % down, patch_height, row_taps, height, everywhere
    )
    first_row, end_row = tl.sum(low), tl.sum(high) + row_taps
    low, high = _seen(columns, one + patch % across, patch_width, column_taps, width, everywhere)
    first_column, seen = tl.sum(low), tl.sum(high) + column_taps - tl.sum(low)
    count = (end_row - first_row) * seen
    differs = tl.zeros([BLOCK], tl.int32)
    for begin in range(0, count, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        inside = place < count
        row = (first_row + place // seen).to(tl.int64)
        column = (first_column + place % seen).to(tl.int64)
        a = pictures + frame * frame_stride + row * row_stride + column * column_stride
        b = previous + frame * before_frame + row * before_row + column * before_column
        for channel in tl.static_range(3):
            x = tl.load(a + channel * channel_stride, mask=inside, other=0)
            y = tl.load(b + channel * before_channel, mask=inside, other=0)
            differs |= (x != y).to(tl.int32)
    tl.store(changed + patch, (tl.max(differs, 0) > 0).to(tl.uint8))


@triton.jit
def _narrow_rows(
    pictures, rows, columns, changed, narrowed, height, width, row_taps, column_taps, down,
    across,
    patch_height, patch_width,
    frame_stride,
    row_stride,
    column_stride,
    channel_stride,
    UPDATE: tl.constexpr, FRACTION_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    resized = across * patch_width
    group, part = split_program(resized, BLOCK)
    frame, row = (group // height).to(tl.int64), group % height
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < resized
    if UPDATE:  # some patch of this column that is marked sees this row
        needed = tl.zeros([BLOCK], tl.int32)
        for patch_row in range(0, down):
            low, high = _seen(rows, column * 0 + patch_row, patch_height, row_taps, height, inside)
            sees = inside & (low <= row) & (row < high + row_taps)
            at = (frame * down + patch_row) * across + column // patch_width
            needed |= tl.load(changed + at, mask=sees, other=0).to(tl.int32)
        inside = inside & (needed != 0)
    start = _start(columns, column, column_taps, width, inside).to(tl.int64)
    at = pictures + frame * frame_stride + row.to(tl.int64) * row_stride + start * column_stride
    red = tl.full([BLOCK], 1 << (FRACTION_BITS - 1), tl.int32)
    green, blue = red, red
    for tap in range(0, column_taps):
        weight = tl.load(columns + column * (column_taps + 1) + 1 + tap, mask=inside, other=0)
        pixel = at + tap * column_stride
        red += weight * tl.load(pixel, mask=inside, other=0).to(tl.int32)
        green += weight * tl.load(pixel + channel_stride, mask=inside, other=0).to(tl.int32)
        blue += weight * tl.load(pixel + 2 * channel_stride, mask=inside, other=0).to(tl.int32)
    word = _byte(red, FRACTION_BITS) | (_byte(green, FRACTION_BITS) << 8)
    word |= _byte(blue, FRACTION_BITS) << 16
    tl.store(narrowed + (frame * height + row) * resized + column, word, mask=inside)


@triton.jit
def _make_patches(
    narrowed, rows, changed, values, patches, height, row_taps, down, across,
    patch_height, patch_width, patch_frame, patch_token,
    patch_value,
    UPDATE: tl.constexpr, FRACTION_BITS: tl.constexpr, BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    resized = across * patch_width
    group, part = split_program(resized, BLOCK)
    frame, row = (group // (down * patch_height)).to(tl.int64), group % (down * patch_height)
    column = part * BLOCK + tl.arange(0, BLOCK)
    inside = column < resized
    token = row // patch_height * across + column // patch_width
    if UPDATE:
        inside = inside & (tl.load(changed + frame * down * across + token, inside, other=0) != 0)
    start = tl.load(rows + row * (row_taps + 1))
    start = tl.minimum(tl.maximum(start, 0), height - row_taps)
    at = narrowed + (frame * height + start) * resized + column
    red = tl.full([BLOCK], 1 << (FRACTION_BITS - 1), tl.int32)
    green, blue = red, red
    for tap in range(0, row_taps):
        weight = tl.load(rows + row * (row_taps + 1) + 1 + tap)
        word = tl.load(at + tap * resized, mask=inside, other=0)
        red += weight * (word & 255)
        green += weight * ((word >> 8) & 255)
        blue += weight * ((word >> 16) & 255)
    place = (row % patch_height * patch_width + column % patch_width).to(tl.int64)
    to = patches + frame * patch_frame + token.to(tl.int64) * patch_token + place * patch_value
    plane = (patch_height * patch_width).to(tl.int64) * patch_value
    value = tl.load(values + _byte(red, FRACTION_BITS), mask=inside, other=0.0)
    tl.store(to, value, mask=inside)
    value = tl.load(values + BYTES + _byte(green, FRACTION_BITS), mask=inside, other=0.0)
    tl.store(to + plane, value, mask=inside)
    value = tl.load(values + 2 * BYTES + _byte(blue, FRACTION_BITS), mask=inside, other=0.0)
    tl.store(to + 2 * plane, value, mask=inside)


def _resize(
    patches: Tensor,
    pictures: Tensor,
    changed: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch: tuple[int, int],
) -> None:
    """Overwrite the patches that are marked, or all of them."""
    frames, height, width, _ = pictures.shape
    down, across = len(rows) // patch[0], len(columns) // patch[1]
    resized = across * patch[1]
    narrowed = torch.empty((frames, height, resized), dtype=torch.int32, device=pictures.device)
    parameters = _tuning.parameters("patches", pictures.device, columns=resized)
    parts = triton.cdiv(resized, parameters["BLOCK"])
    marks = pictures if changed is None else changed.view(torch.uint8)
    launch(
        _narrow_rows, frames * height * parts,
        pictures, rows, columns, marks, narrowed, height, width, rows.shape[1] - 1,
        columns.shape[1] - 1, down, across,
        *patch,
        *pictures.stride(),
        parameters=parameters, UPDATE=changed is not None, FRACTION_BITS=FRACTION_BITS,
    )  # fmt: skip
    launch(
        _make_patches, frames * down * patch[0] * parts,
        narrowed, rows, marks, values.contiguous(), patches, height, rows.shape[1] - 1, down,
        across,
        *patch,
        *patches.stride(),
        parameters=parameters, UPDATE=changed is not None, FRACTION_BITS=FRACTION_BITS,
        BYTES=BYTES,
    )  # fmt: skip


def frames_to_patches(
    pictures: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    """Resized pictures, cut into patches, each byte replaced by its value."""
    patch = patch_height, patch_width
    number = (len(rows) // patch_height) * (len(columns) // patch_width)
    patches = values.new_empty((len(pictures), number, 3 * patch_height * patch_width))
    _resize(patches, pictures, None, rows.contiguous(), columns.contiguous(), values, patch)
    return patches


def update_patches_(
    patches: Tensor,
    pictures: Tensor,
    previous: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    patch_height: int,
    patch_width: int,
) -> Tensor:
    """Overwrite the patches that see a pixel that changed; return which they are."""
    rows, columns = rows.contiguous(), columns.contiguous()
    changed = torch.empty(patches.shape[:2], dtype=torch.bool, device=patches.device)
    parameters = _tuning.parameters("patches", pictures.device, columns=len(columns))
    launch(
        _mark_changed_patches, changed.numel(),
        pictures, previous, rows, columns, changed.view(torch.uint8),
        *pictures.shape[1:3],
        rows.shape[1] - 1, columns.shape[1] - 1, len(rows) // patch_height,
        len(columns) // patch_width, patch_height, patch_width,
        *pictures.stride(),
        *previous.stride(),
        parameters=parameters,
    )  # fmt: skip
    _resize(patches, pictures, changed, rows, columns, values, (patch_height, patch_width))
    return changed
