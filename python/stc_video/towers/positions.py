# SPDX-License-Identifier: Apache-2.0
"""Where the rows of the frames under way are: rotary positions and windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from stc_video.rotary import apply_rotary


class Tables(NamedTuple):
    """Cosines and sines (n, head size) of rows.

    ``pairs`` is whether a channel turns with the next one, else with the one half a head further.
    """

    cos: Tensor
    sin: Tensor
    pairs: bool = False


@dataclass
class FrameGeometry:
    """The frames under way: where their rows are. Shared by the blocks of a tower.

    Attributes
    ----------
    tables
        (N, head size) float32 cosines and sines by which each row's queries and keys are rotated;
        None if they are not.
    windows
        Sizes of the windows, in rows; they follow each other.
    window_of
        (N,) int64 the window of each row.
    keeps_tables
        Whether tables of one size stay at one address, which a recorded pass knows.
    """

    tables: Tables | None = None
    windows: tuple[int, ...] = ()
    window_of: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    keeps_tables: bool = False
    _buffers: dict[Any, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def enter(
        self, tables: Tables | None, tokens: int, windows: tuple[int, ...] | None = None
    ) -> None:
        """Describe the next frames, of ``tokens`` rows; those in front of the tables stay."""
        self.tables = None if tables is None else self._kept(tables, tokens)
        windows = (tokens,) if windows is None else windows
        device = self.window_of.device if tables is None else tables[0].device
        if windows != self.windows or self.window_of.device != device:
            sizes = torch.tensor(windows, device=device)
            numbers = torch.arange(len(windows), device=device)
            self.windows, self.window_of = windows, numbers.repeat_interleave(sizes)

    def _kept(self, tables: Tables, tokens: int) -> Tables:
        cos, sin = (table.detach().float() for table in tables[:2])
        prefix = (0, 0, tokens - cos.shape[0], 0)
        new = pad(cos, prefix, value=1.0), pad(sin, prefix)
        if not self.keeps_tables:
            return Tables(*new, pairs=tables.pairs)
        key = new[0].shape, new[0].device
        if key not in self._buffers:
            with torch.inference_mode(False):
                self._buffers[key] = new[0].clone(), new[1].clone()
        for kept, table in zip(self._buffers[key], new, strict=True):
            kept.copy_(table)
        return Tables(*self._buffers[key], tables.pairs)

    @contextmanager
    def replaced(self, tables: Tables | None, tokens: int) -> Iterator[None]:
        """Inside, other rows are under way."""
        before, self.tables = self.tables, None if tables is None else self._kept(tables, tokens)
        try:
            yield
        finally:
            self.tables = before

    def rotate(self, x: Tensor, heads: int, axes: int, indices: Tensor | None) -> Tensor:
        """Rotate queries or keys (B, K, C) by the places of their rows."""
        if self.tables is None:
            return x
        *tables, pairs = self.tables
        cos, sin = (t if indices is None else t[indices.long()] for t in tables)
        if axes > 1:
            cos, sin = (table.unflatten(-1, (axes, -1)) for table in (cos, sin))
            split = x.view(*x.shape[:2], heads, axes, -1)
            return apply_rotary(split, cos.unsqueeze(-3), sin.unsqueeze(-3), pairs=pairs).view(
                x.shape
            )
        split = x.view(*x.shape[:2], heads, -1)
        return apply_rotary(split, cos.unsqueeze(-2), sin.unsqueeze(-2), pairs=pairs).view(x.shape)


def tables_in(arguments: Mapping[str, Any]) -> Tables | None:
    """Cosines and sines in the arguments of a block, the same for all frames, or None.

    They are ``position_embeddings``, in transformers (or, before, their angles in
    ``rotary_pos_emb``), or ``rope``, in timm.

    Raises
    ------
    ValueError
        If there is something else in these, said as the end of a sentence.
    """
    value, rope = arguments.get("position_embeddings"), arguments.get("rope")
    if isinstance(rope, Tensor):
        value = rope.chunk(2, dim=-1)[::-1]
    angles = arguments.get("rotary_pos_emb")
    if value is None and isinstance(angles, Tensor):
        angles = torch.cat([angles, angles], dim=-1).float()
        value = angles.cos(), angles.sin()
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError("its position_embeddings are no cosines and sines")
    cos, sin = value
    if not isinstance(cos, Tensor) or not isinstance(sin, Tensor) or cos.shape != sin.shape:
        raise ValueError("its position_embeddings are no cosines and sines of one shape")
    if cos.dim() == 3:
        if not all(torch.equal(table, table[:1].expand_as(table)) for table in (cos, sin)):
            raise ValueError("its position_embeddings are not the same in each frame of a call")
        cos, sin = cos[0], sin[0]
    if cos.dim() != 2:
        raise ValueError(f"its position_embeddings have shape {tuple(value[0].shape)}")
    return Tables(cos, sin, pairs=rope is not None)
