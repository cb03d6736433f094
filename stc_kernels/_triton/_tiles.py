# SPDX-License-Identifier: Apache-2.0
"""Tiles of a program, also of attention heads, whose width need not be a power of two."""

from __future__ import annotations

import triton
import triton.language as tl

#: matrix products take at least so many channels
_SMALLEST = 16


def split_width(width: int) -> tuple[int, int]:
    """Tiles of a head's channels, powers of two: the largest that fits, and one for the rest.

    A head of 72 channels is read as 64 + 8 (in a tile of 16) and one of 80 as 64 + 16, so that
    neither memory traffic nor matrix products are padded to 128.
    """
    main = max(_SMALLEST, 1 << max(0, width.bit_length() - 1))
    rest = width - main
    return main, max(_SMALLEST, triton.next_power_of_2(rest)) if rest > 0 else 0


@triton.jit
def split_program(count, block):
    """Return which group this program is of, and which of the parts of ``block`` in ``count``."""
    parts = tl.cdiv(count, block)
    return tl.program_id(0) // parts, tl.program_id(0) % parts


@triton.jit
def load_tokens(indices, place, places, tokens):
    """Token numbers (int64) of a list; -1 where the list ends, or names a token that is not there.

    As in the CUDA kernels: the caller is to blame, but nothing is read or written out of bounds.
    """
    token = tl.load(indices + place, mask=place < places, other=-1).to(tl.int64)
    return tl.where(token < tokens, token, -1)


@triton.jit
def load_tile(at, rows, columns):
    """Values at addresses (R, C), zero outside of the rows and columns that there are."""
    return tl.load(at, mask=rows & columns, other=0.0)


@triton.jit
def dot(a, b, acc, INTERPRETED: tl.constexpr):
    """Add a product to acc: float32 for float32 inputs, not tf32."""
    if INTERPRETED:  # whose product takes bfloat16 for integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
