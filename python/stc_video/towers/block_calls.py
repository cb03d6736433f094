# SPDX-License-Identifier: Apache-2.0
"""The arguments of a tower's blocks, and whether their parts take all of them into account."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stc_video.towers.attention import key_mask
from stc_video.towers.plain import parameter_names
from stc_video.towers.positions import Tables, tables_in
from stc_video.towers.rows import Group, first_picture, groups_of, no_block_mask
from stc_video.towers.varlen import VarlenTower

#: arguments of a block: those by position and those by name
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

#: where a frame is in the hidden states of a call: an index of their first dimensions
Place = tuple[slice, ...]

#: arguments of varlen blocks that their parts take into account, or that follow from the others
_VARLEN_ARGUMENTS = ("cu_seqlens", "max_seqlen", "position_embeddings", "rotary_pos_emb")

#: arguments of other blocks that tell places: cosines and sines, and what these were made of
PLACES = ("position_embeddings", "position_ids", "rope")


def bind(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a block after its hidden states, by name."""
    return dict(zip(parameter_names(type(layer).forward)[2:], args, strict=False)) | kwargs


def form(value: Any) -> Hashable:
    """The form of an argument: type, dtype and shape, but not content."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape
    if isinstance(value, (tuple, list)):
        return tuple(form(part) for part in value)
    return type(value).__name__


def kind(value: Any) -> Hashable:
    """The kind of an argument: its form, but for the sizes of tensors."""
    if isinstance(value, Tensor):
        return value.dtype, value.dim()
    if isinstance(value, (tuple, list)):
        return tuple(kind(part) for part in value)
    return type(value).__name__


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in an argument."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


class Call(Protocol):
    """A call of a tower's blocks."""

    @property
    def states(self) -> Tensor:
        """Hidden states, the input of the first block."""

    @property
    def layout(self) -> Hashable:
        """Facts beside the arguments that their meaning depends on."""

    @property
    def is_single(self) -> bool:
        """Whether there is one frame only, where that makes a difference."""

    def ignored(self, number: int, arguments: dict[str, Any]) -> str:
        """Say what the parts of a block ignore of its arguments; empty if nothing."""

    def sample(self) -> Place | None:
        """Where the frame is that is checked; None if all have NaN or Inf."""

    def cut(self, arguments: Arguments, rows: Place) -> Arguments:
        """Arguments of a block, as if the call had that frame only."""

    def prepare(self) -> None:
        """Make the blocks ready for that frame."""


@dataclass(frozen=True)
class BatchCall:
    """Frames (B, N, C) of a number of streams, one stream after another.

    ``rotates`` is whether queries and keys are rotated as ``position_embeddings`` say. ``sizes``
    are those of several pictures that lie in one row (1, M, C).
    """

    states: Tensor
    streams: int = 1
    rotates: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def layout(self) -> Hashable:
        """The sizes of the pictures of a row, which a mask does not show by its form."""
        return self.sizes

    @property
    def is_single(self) -> bool:
        """Whether each frame has a row of the batch; :func:`comparison.try_out` has two."""
        return not self.sizes

    def groups(self, arguments: dict[str, Any]) -> list[Group]:
        """Frames that can be encoded together: all, or in a row those of one size and place."""
        tables = tables_in(arguments)
        if self.sizes:
            return groups_of(self.states, self.sizes, tables)
        return [Group(self.states, key_mask(arguments.get("attention_mask")), tables)]

    def joined(self, outputs: Sequence[Mapping[int, Tensor]]) -> dict[int, Tensor]:
        """What was made of each of the groups, by layer, in the form of the hidden states."""
        if not self.sizes:
            return dict(outputs[0])
        return {
            layer: torch.cat([part[layer].flatten(0, 1) for part in outputs])[None]
            for layer in outputs[0]
        }

    def ignored(self, number: int, arguments: dict[str, Any]) -> str:
        """Say what the parts of a block ignore of its arguments; empty if nothing."""
        if self.states.dim() != 3:
            shape = tuple(self.states.shape)
            return f"it takes hidden states of shape {shape}, not (frames, tokens, channels)"
        for name, value in arguments.items():
            tensors = list(tensors_in(value))
            if not tensors or name == "max_seqlen":
                continue
            if name == "attention_mask" and isinstance(value, Tensor):
                states, sizes = self.states, self.sizes
                reason = no_block_mask(value, sizes) if sizes else _no_key_mask(value, states)
            elif name == "cu_seqlens" and isinstance(value, Tensor):
                reason = self._several_in_a_row(value)
            elif self.rotates and name in PLACES:
                reason = _no_places(arguments, self.states.shape[1], is_row=bool(self.sizes))
            else:
                reason = f"it gets {name} {_shapes(tensors)}, which it would not see"
            if reason:
                return reason
        return ""

    def _several_in_a_row(self, bounds: Tensor) -> str:
        rows, tokens = self.states.shape[:2]
        if rows == 1 and bounds.tolist() == [0, *accumulate(self.sizes or (tokens,))]:
            return ""
        return (
            f"it gets {bounds.numel() - 1} pictures in a row of {tokens} tokens (cu_seqlens), "
            "which would see each other; pass one picture a call"
        )

    def sample(self) -> Place | None:
        """Place of the first frame that is free of NaN and Inf.

        It is the first of the batch, or, if that one is not usable, another of the same stream.
        """
        inside = [slice(0, size) for size in self.sizes[:1]]
        for number in range(self.states.shape[0] if self.streams == 1 else 1):
            place = (slice(number, number + 1), *inside)
            if bool(torch.isfinite(self.states[place].sum(dtype=torch.float32))):
                return place
        return None

    def cut(self, arguments: Arguments, rows: Place) -> Arguments:
        """Arguments of a block, as if the call had that frame only."""
        cut: Arguments
        if self.sizes:
            cut = first_picture(arguments, self.sizes)
        else:
            cut = _rows_of(arguments, self.states.shape[0], rows[0])
        return cut

    def prepare(self) -> None:
        """Frames of a batch are all alike."""


@dataclass(frozen=True)
class VarlenCall:
    """Rows (M, C) of some videos, each of (time, height, width) places.

    ``positions`` are the arguments of the first block that :func:`tables_in` looks at.
    """

    tower: VarlenTower
    states: Tensor
    grids: Sequence[tuple[int, int, int]]
    positions: Mapping[str, Any]

    @property
    def layout(self) -> Hashable:
        """The sizes of the videos."""
        return tuple(self.grids)

    @property
    def is_single(self) -> bool:
        """Whether the rows are those of one frame."""
        return len(self.grids) == 1 and self.grids[0][0] == 1

    @property
    def _size(self) -> int:
        _, height, width = self.grids[0]
        return height * width

    def ignored(self, number: int, arguments: dict[str, Any]) -> str:
        """Say what the parts of a block ignore of its arguments; empty if nothing."""
        for name, value in arguments.items():
            tensors = list(tensors_in(value))
            if tensors and name not in _VARLEN_ARGUMENTS:
                return f"it gets {name} {_shapes(tensors)}, which it would not see"
        sizes: list[int] = []
        for time, height, width in self.grids:
            is_windowed = self.tower.blocks[number].is_windowed
            whole = (height * width,)
            sizes += time * (self.tower.windows(height, width) if is_windowed else whole)
        bounds = arguments.get("cu_seqlens")
        if not isinstance(bounds, Tensor) or bounds.tolist() != [0, *accumulate(sizes)]:
            got = bounds.tolist() if isinstance(bounds, Tensor) else bounds
            return f"it attends over other rows than those of a frame or window (cu_seqlens {got})"
        return self._places_that_move()

    def _places_that_move(self) -> str:
        try:
            tables = tables_in(self.positions)
        except ValueError as error:
            return str(error)
        start = 0
        for time, height, width in self.grids:
            end = start + time * height * width
            for table in () if tables is None else (tables.cos, tables.sin):
                places = table[start:end].view(time, height * width, -1)
                if not torch.equal(places, places[:1].expand_as(places)):
                    return "its position_embeddings are not the same in each frame of a video"
            start = end
        return ""

    def sample(self) -> Place | None:
        """Place of the first frame of the first video, if it is free of NaN and Inf."""
        rows = (slice(0, self._size),)
        return rows if bool(torch.isfinite(self.states[rows].sum(dtype=torch.float32))) else None

    def cut(self, arguments: Arguments, rows: Place) -> Arguments:
        """Arguments of a block, as if the call had that frame only."""
        args, kwargs = arguments
        cut: dict[str, Any] = _rows_of(kwargs, self.states.shape[0], rows[0])
        bounds = kwargs["cu_seqlens"]
        return args, cut | {"cu_seqlens": bounds[bounds <= self._size]}

    def prepare(self) -> None:
        """Tell the blocks the places of that frame."""
        _, height, width = self.grids[0]
        self.enter(0, height, width)

    def enter(self, start: int, height: int, width: int) -> None:
        """Tell the blocks the places of a frame whose rows begin at ``start``."""
        rows, windows = slice(start, start + height * width), self.tower.windows(height, width)
        tables = tables_in(self.positions)
        if tables is not None:
            tables = Tables(tables.cos[rows], tables.sin[rows])
        self.tower.geometry.enter(tables, height * width, windows)


def _rows_of(value: Any, rows: int, some: slice) -> Any:
    """An argument, with some rows of each tensor that has as many as the call."""
    if isinstance(value, Tensor):
        return value[some] if value.dim() and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {name: _rows_of(part, rows, some) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_of(part, rows, some) for part in value)
    return value


def _no_key_mask(mask: Tensor, frames: Tensor) -> str:
    """Say why an attention mask is none of keys alone, the same for all queries and heads."""
    batch, tokens = frames.shape[:2]
    shape = tuple(mask.shape)
    fits = len(shape) == 4 and shape[0] in (1, batch) and shape[1] == 1 and shape[3] == tokens
    if not fits or shape[2] not in (1, tokens):
        return f"it gets an attention_mask of shape {shape}, not ({batch}, 1, {tokens}, {tokens})"
    if not bool((mask == mask[:, :, :1]).all()):
        return "it gets an attention_mask that is not the same for all queries (a causal one?)"
    return ""


def _no_places(arguments: dict[str, Any], tokens: int, *, is_row: bool) -> str:
    """Say why arguments do not tell the places of a frame's last tokens, or of all of a row."""
    try:
        tables = tables_in(arguments)
    except ValueError as error:
        return str(error)
    if tables is None:
        return "it gets position_ids without cosines and sines, which it would not see"
    if tables.cos.shape[0] > tokens or (is_row and tables.cos.shape[0] != tokens):
        return f"it gets position_embeddings of {tables.cos.shape[0]} places for {tokens} tokens"
    return ""


def _shapes(tensors: Sequence[Tensor]) -> str:
    shapes = [str(tuple(tensor.shape)) for tensor in tensors[:3]]
    return f"of shape {', '.join(shapes)}"
