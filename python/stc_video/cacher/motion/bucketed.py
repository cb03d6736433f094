# SPDX-License-Identifier: Apache-2.0
"""The pass of the ``motion`` policy in fixed shapes, for a GPU and its graphs.

Streams with the same number of rows go together; their number is rounded up to a power of two.
Which streams and which rows they are is data on the device: a pass of one shape does for all of
them, and nothing in it waits for the device.

Shapes: S slots of a slab, B streams of a pass, K rows of each, N tokens, C channels, L layers.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stc_kernels import scatter_key_value_, scatter_rows_
from stc_video.cacher.graphs import GraphCache
from stc_video.cacher.motion.segments import Segment
from stc_video.cacher.motion.state import MotionState
from stc_video.cacher.streams import Slab
from stc_video.towers.block import Block
from stc_video.towers.fused import add_and_normalise, take_and_normalise


@dataclass(frozen=True)
class Rows:
    """The places that the rows of a pass belong to.

    Attributes
    ----------
    slots
        (B,) int64, slot of each stream.
    indices
        (B, K) int32, indices of the rows in their frames; -1 for rows that are written nowhere.
    covers_all
        Whether they are all tokens, in order.
    in_order
        Whether the slots are the first ones of the slab, in order.
    """

    slots: Tensor
    indices: Tensor
    covers_all: bool
    in_order: bool = False
    _in_frames: dict[int, Tensor] = field(default_factory=dict)

    def flat(self, planes: int, tokens: int) -> Tensor:
        """Indices (planes, 1, B * K) in a tensor of (slots, planes, N) rows, in each plane."""
        plane = torch.arange(planes, device=self.slots.device)[:, None]
        first = (self.slots * planes + plane) * tokens
        at = torch.where(self.indices < 0, -1, first[..., None] + self.indices)
        return at.int().view(planes, 1, -1)

    @functools.cached_property
    def readable(self) -> Tensor | None:
        """Indices, those of rows that are written nowhere moved to the first; None for all."""
        return None if self.covers_all else self.indices.clamp(min=0)

    def put(self, whole: Tensor, rows: Tensor) -> None:
        """Write rows (B, K, C) into a slab's plane (S, N, C)."""
        tokens, channels = whole.shape[1:]
        if tokens not in self._in_frames:
            self._in_frames[tokens] = self.flat(1, tokens)[0]
        at = self._in_frames[tokens]
        scatter_rows_(whole.view(1, -1, channels), at, rows.reshape(1, -1, channels))

    def take(self, plane: Tensor) -> Tensor:
        """The slots' part (B, N, C) of a slab's plane (S, N, C); no copy if they are in order."""
        return plane[: len(self.slots)] if self.in_order else plane.index_select(0, self.slots)


@dataclass(frozen=True)
class BucketedEncoder:
    """Runs segments in passes of fixed shapes, each through the cache of graphs.

    Attributes
    ----------
    blocks
        All blocks of the tower.
    head
        Number of the first layer that may run for all tokens.
    graphs
        Where passes are recorded and run.
    """

    blocks: Sequence[Block]
    head: int
    graphs: GraphCache

    def encode(self, segments: Sequence[Segment]) -> None:
        """Write what becomes of the segments' rows into their states; at least one segment."""
        groups: dict[tuple[Slab, int, bool, bool], list[Segment]] = {}
        for one in segments:
            shape = (one.slot.slab, one.rows, one.with_tail, one.indices is None)
            groups.setdefault(shape, []).append(one)
        for (slab, _, with_tail, covers_all), group in groups.items():
            self._encode_group(slab, group, with_tail, covers_all)

    def _encode_group(
        self, slab: Slab, group: Sequence[Segment], with_tail: bool, covers_all: bool
    ) -> None:
        state, inputs = slab.state, _inputs(slab, group)
        assert isinstance(state, MotionState)
        shapes = tuple(tensor.shape for tensor in inputs)
        numbers = [one.slot.number for one in group]
        # A frame of which all rows are encoded does not read what was there before.
        in_order = not covers_all and slab.begins_with(numbers, len(inputs[1]))
        key: Hashable = (shapes, with_tail, covers_all, in_order)

        def encode(frames: Tensor, slots: Tensor, indices: Tensor, *mask: Tensor) -> None:
            rows = Rows(slots, indices, covers_all, in_order)
            self._run(state, frames, rows, mask[0] if mask else None, with_tail)

        self.graphs.run(slab, key, encode, inputs)

    def _run(
        self, state: MotionState, frames: Tensor, rows: Rows, mask: Tensor | None, with_tail: bool
    ) -> None:
        at = rows.flat(*state.keys.shape[1:3])
        indices = None if rows.covers_all else rows.indices
        normed: Tensor | None
        x, normed = take_and_normalise(frames, indices, self.blocks[0].norm1)
        rows.put(state.reference, normed)
        for layer, block in enumerate(self.blocks):
            if layer == self.head:
                assert state.tail_input is not None
                rows.put(state.tail_input, x)
                if with_tail:
                    x = rows.take(state.tail_input)
                    rows = _all_tokens(rows, x.shape[1])
                    at, normed = rows.flat(*state.keys.shape[1:3]), None
            normed = block.norm1(x) if normed is None else normed
            attention = self._attention(block, normed, state, rows, at[layer], mask, layer)
            x, normed = add_and_normalise(x, attention, block.norm2)
            following = self._norm_after(layer, with_tail)
            x, normed = add_and_normalise(x, block.mlp_branch(normed), following)
            if layer in state.hidden:
                rows.put(state.hidden[layer], x)
        rows.put(state.output, x)

    def _norm_after(self, layer: int, with_tail: bool) -> nn.Module | None:
        """Norm that the output of a layer goes into as it is, if there is one."""
        widens = with_tail and layer + 1 == self.head
        return None if widens or layer + 1 == len(self.blocks) else self.blocks[layer + 1].norm1

    def _attention(
        self,
        block: Block,
        normed: Tensor,
        state: MotionState,
        rows: Rows,
        at: Tensor,
        mask: Tensor | None,
        layer: int,
    ) -> Tensor:
        """Attention branch (B, K, C); the rows' keys and values go into the states first."""
        indices = rows.readable
        query, key, value = block.project(normed, indices)
        _store_rows(state.keys, state.values, at, key, value)
        if not rows.covers_all:
            key, value = rows.take(state.keys[:, layer]), rows.take(state.values[:, layer])
        return block.attention_branch(block.attend(query, key, value, mask, indices))


def _store_rows(keys: Tensor, values: Tensor, at: Tensor, key: Tensor, value: Tensor) -> None:
    """Write rows (B, K, C) at flat indices (1, B * K) of the slab's keys and values."""
    channels = keys.shape[-1]
    caches = keys.view(1, -1, channels), values.view(1, -1, channels)
    rows = key.reshape(1, -1, channels), value.reshape(1, -1, channels)
    if keys.is_cuda:
        scatter_key_value_(*caches, at, *rows)  # one launch; it has no kernel for CPUs
    else:
        for cache, new in zip(caches, rows, strict=True):
            scatter_rows_(cache, at, new)


def _inputs(slab: Slab, group: Sequence[Segment]) -> tuple[Tensor, ...]:
    """Frames, slots, rows and perhaps masks of a group, filled up to a power of two of streams."""
    first = group[0]
    spare = (1 << (len(group) - 1).bit_length()) - len(group)
    device, rows = first.frame.device, first.rows
    every = torch.arange(rows, dtype=torch.int32, device=device)[None]
    # What fills up repeats the first segment's frame and writes it nowhere; in which slot it reads
    # does not matter.
    nowhere = torch.full((spare, rows), -1, dtype=torch.int32, device=device)
    indices = [every if one.indices is None else one.indices for one in group]
    numbers = [one.slot.number for one in group]
    numbers += [min(at, slab.slots - 1) for at in range(len(group), len(group) + spare)]
    inputs = [
        _together([one.frame for one in group] + [first.frame] * spare),
        torch.tensor(numbers, dtype=torch.int64).to(device, non_blocking=True),
        _together([*indices, *([nowhere] if spare else [])]),
    ]
    if first.mask is not None:
        masks = [one.mask for one in group if one.mask is not None]
        inputs.append(_together(masks + [first.mask] * spare))
    return tuple(inputs)


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _all_tokens(rows: Rows, tokens: int) -> Rows:
    """All tokens of the same streams, except those that write nowhere."""
    every = torch.arange(tokens, dtype=torch.int32, device=rows.indices.device)
    indices = torch.where(rows.indices[:, :1] < 0, -1, every)
    return Rows(rows.slots, indices, covers_all=True, in_order=rows.in_order)
