# SPDX-License-Identifier: Apache-2.0
"""Encodings of the keys and values of a block as bytes.

A record is a uint8 tensor of (layers, bytes), so that one layer can be read alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_GROUP = 32


class Codec(Protocol):
    """Turns keys and values into bytes and back."""

    def encode(self, kv: Tensor) -> Tensor:
        """From (L, 2, H, n, d) to a record (L, R) uint8 on the same device."""
        ...

    def decode(self, row: Tensor, tokens: int) -> Tensor:
        """From one layer (R,) of a record of ``tokens`` tokens to (2, H, n, d)."""
        ...


@dataclass(frozen=True)
class ExactCodec:
    """The bits as they are.

    Attributes
    ----------
    heads, width
        Number of key heads, and their size.
    dtype
        Of the keys and values.
    """

    heads: int
    width: int
    dtype: torch.dtype

    def encode(self, kv: Tensor) -> Tensor:
        """Return the bytes."""
        return kv.contiguous().view(kv.shape[0], -1).view(torch.uint8)

    def decode(self, row: Tensor, tokens: int) -> Tensor:
        """Return a view of the bytes."""
        return row.view(self.dtype).view(2, self.heads, tokens, self.width)


@dataclass(frozen=True)
class Int8Codec:
    """Eight bits per value, scaled by the largest of each key channel and of each value token.

    Keys of trained models have a few large channels, which would spoil a scale per token.
    """

    heads: int
    width: int
    dtype: torch.dtype

    def encode(self, kv: Tensor) -> Tensor:
        """Return codes and scales."""
        keys, key_scale = _quantised(kv[:, 0], dim=-2)
        values, value_scale = _quantised(kv[:, 1], dim=-1)
        parts = (keys, values, key_scale, value_scale)
        return torch.cat([part.reshape(len(kv), -1).view(torch.uint8) for part in parts], dim=1)

    def decode(self, row: Tensor, tokens: int) -> Tensor:
        """Return codes times scales."""
        codes = self.heads * tokens * self.width
        keys, values, scales = row[:codes], row[codes : 2 * codes], row[2 * codes :]
        # Scales of one token or head may begin at an odd byte.
        floats = scales.clone().view(torch.float32)
        split = self.heads * self.width
        shape = (self.heads, tokens, self.width)
        key_scale = floats[:split].view(self.heads, 1, self.width)
        value_scale = floats[split:].view(self.heads, tokens, 1)
        both = (
            keys.view(torch.int8).view(shape) * key_scale,
            values.view(torch.int8).view(shape) * value_scale,
        )
        return torch.stack(both).to(self.dtype)


@dataclass(frozen=True)
class Int4Codec:
    """Four bits per value, two values in a byte, with the range of each group of 32.

    Groups are neighbouring tokens of a key channel, and neighbouring channels of a value token
    (as in KIVI, arXiv 2402.02750). Sixteen steps go from a group's smallest value to its largest,
    both held as float16; what float16 cannot hold is cut off.
    """

    heads: int
    width: int
    dtype: torch.dtype

    def encode(self, kv: Tensor) -> Tensor:
        """Return codes, smallest values and steps."""
        keys = _grouped(kv[:, 0].transpose(-1, -2))
        values = _grouped(kv[:, 1])
        parts = [_packed(keys[0]), _packed(values[0])]
        for _, low, step in (keys, values):
            parts += [part.reshape(len(kv), -1).view(torch.uint8) for part in (low, step)]
        return torch.cat(parts, dim=1)

    def decode(self, row: Tensor, tokens: int) -> Tensor:
        """Return smallest values plus codes times steps."""
        count = self.heads * tokens * self.width
        size = -(-count // 2)
        codes = [_unpacked(row[at : at + size], count) for at in (0, size)]
        # It may begin at an odd byte.
        floats = row[2 * size :].clone().view(torch.float16).float()
        shapes = ((self.heads, self.width, tokens), (self.heads, tokens, self.width))
        decoded = []
        for shape, code in zip(shapes, codes, strict=True):
            groups = shape[0] * shape[1] * -(-shape[2] // _GROUP)
            low, step, floats = floats[:groups], floats[groups : 2 * groups], floats[2 * groups :]
            rows = (*shape[:2], -1)
            spread = (
                x.view(rows).repeat_interleave(_GROUP, -1)[..., : shape[2]] for x in (low, step)
            )
            lows, steps = spread
            decoded.append(lows + code.view(shape) * steps)
        return torch.stack([decoded[0].transpose(-1, -2), decoded[1]]).to(self.dtype)


_CODECS: dict[str, Callable[[int, int, torch.dtype], Codec]] = {
    "exact": ExactCodec,
    "int8": Int8Codec,
    "int4": Int4Codec,
}


def make_codec(storage: str, heads: int, width: int, dtype: torch.dtype) -> Codec:
    """Return the codec of that name, ``"exact"``, ``"int8"`` or ``"int4"``."""
    return _CODECS[storage](heads, width, dtype)


def _grouped(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes 0 to 15 and, for each group along the last dimension, its low and its step."""
    size = x.shape[-1]
    # The last group is filled up with its last value, which does not change its range.
    padded = torch.cat([x, x[..., -1:].expand(*x.shape[:-1], -size % _GROUP)], dim=-1).float()
    groups = padded.unflatten(-1, (-1, _GROUP))
    low = _half(groups.amin(-1))
    step = _half((groups.amax(-1) - low.float()) / 15)
    divisor = torch.where(step > 0, step, 1.0).float()
    codes = ((groups - low.float()[..., None]) / divisor[..., None]).round().clamp(0, 15)
    return codes.to(torch.uint8).flatten(-2)[..., :size], low, step


def _half(x: Tensor) -> Tensor:
    most = torch.finfo(torch.float16).max
    return x.clamp(-most, most).to(torch.float16)


def _packed(codes: Tensor) -> Tensor:
    """Put two codes of a layer into a byte."""
    flat = codes.reshape(len(codes), -1)
    if flat.shape[1] % 2:
        flat = torch.cat([flat, flat[:, -1:]], dim=1)
    return flat[:, ::2] | (flat[:, 1::2] << 4)


def _unpacked(row: Tensor, count: int) -> Tensor:
    return torch.stack([row & 15, row >> 4], dim=-1).flatten()[:count]


def _quantised(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes and the float32 scales along a dimension."""
    x = x.float()
    scale = x.abs().amax(dim, keepdim=True) / 127
    codes = (x / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
    return codes, scale
