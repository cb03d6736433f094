# SPDX-License-Identifier: Apache-2.0
"""How the keys and values of a block are written as bytes.

A record is a uint8 tensor of (layers, bytes), so that one layer can be read alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Codec", "make_codec"]


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


def make_codec(storage: str, heads: int, width: int, dtype: torch.dtype) -> Codec:
    """Return the codec of that name, ``"exact"`` or ``"int8"``."""
    return (ExactCodec if storage == "exact" else Int8Codec)(heads, width, dtype)


def _quantised(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return int8 codes and the float32 scales along a dimension."""
    x = x.float()
    scale = x.abs().amax(dim, keepdim=True) / 127
    codes = (x / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
    return codes, scale
