# SPDX-License-Identifier: Apache-2.0
"""The sliding window: keys and values of the last frames, with the prompt's beginning in front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stc_video.memory.decoder import Decoder
from stc_video.rotary import apply_rotary

_SLACK = 1.25


@dataclass
class Block:
    """The keys and values of one frame.

    Attributes
    ----------
    number
        Number of the frame in the stream.
    time
        When it was taken, in seconds, or None.
    start
        Position of its first token, for which its keys are rotated; its time, if positions are
        time, height and width.
    span
        How many positions (of time) it takes.
    tokens
        How many tokens it has.
    slot
        Place of its first token in the window; -1 if it has left the window.
    stands_for
        How many frames it represents: more than one where others were merged into it.
    origin
        Position that height and width are counted from, if there are these.
    side
        Rows or columns of its grid, whichever are more; 0 if positions are in one row.
    """

    number: int
    time: float | None
    start: int
    span: int
    tokens: int
    slot: int = -1
    stands_for: int = 1
    origin: int = 0
    side: int = 0


@dataclass(frozen=True)
class Group:
    """Consecutive new frames that see the same frames before them.

    Attributes
    ----------
    rows
        Their rows among the new tokens.
    slot
        Place of the first token that they see.
    start, origin
        Its position, as those of a block.
    """

    rows: slice
    slot: int
    start: int
    origin: int


class Window:
    """Keys and values of the last frames in one buffer per stream.

    The buffer holds (layers, keys and values, heads, tokens, width). Keys are rotated once, for
    their position in the stream. The prompt's beginning always lies directly in front of the first
    frame that is visible, in place and in position, so that attention reads one stretch of memory.

    Parameters
    ----------
    decoder
        The language model.
    limit
        How many tokens of earlier frames a new frame sees.
    """

    def __init__(self, decoder: Decoder, limit: int) -> None:
        self.limit = limit
        self.blocks: list[Block] = []
        self.position = 0
        self._decoder = decoder
        self._end = 0
        self._prefix = self._new_buffer(0)
        self._buffer = self._new_buffer(0)
        # Where each layer has the rotated prefix: (slot behind it, positions behind it).
        self._prefix_at: list[tuple[int, int, int] | None] = [None] * len(decoder.layers)

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the prompt's beginning, P."""
        return self._prefix.shape[3]

    @property
    def prefix(self) -> Tensor:
        """(L, 2, H, P, d) of the prompt's beginning, keys not rotated."""
        return self._prefix

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        return self._buffer.nbytes + self._prefix.nbytes

    def begin(self, prefix: Tensor) -> None:
        """Start anew behind the prompt's beginning (L, 2, H, P, d), keys not rotated."""
        self.blocks = []
        self._prefix = prefix
        self.position = self._end = self.prefix_tokens
        self._buffer = self._new_buffer(self._end)
        self._prefix_at = [None] * len(self._prefix_at)

    def plan(
        self, sizes: Sequence[int], starts: Sequence[tuple[int, int]]
    ) -> tuple[list[Group], int]:
        """Find out what new frames of these sizes, starts and origins see.

        Call :meth:`make_room` first.

        Returns
        -------
        groups, leaving
            The groups of frames, and how many of the window's blocks no later frame will see.
        """
        seen = [(b.tokens, b.slot, b.start, b.origin) for b in self.blocks]
        groups: list[Group] = []
        row, dropped, total = 0, 0, sum(block[0] for block in seen)
        for size, (start, origin) in zip(sizes, starts, strict=True):
            if not size:  # a frame without tokens sees nothing and is not seen
                continue
            while total > self.limit:
                total -= seen[dropped][0]
                dropped += 1
            seen.append((size, self._end + row, start, origin))
            first = seen[dropped][1:]
            rows = slice(row, row + size)
            if groups and groups[-1].slot == first[0]:
                rows = slice(groups.pop().rows.start, rows.stop)
            groups.append(Group(rows, *first))
            row, total = row + size, total + size
        return groups, dropped

    def make_room(self, tokens: int) -> None:
        """Make sure that so many tokens fit behind the last one."""
        capacity = self._buffer.shape[3]
        if self._end + tokens <= capacity:
            return
        first = self.blocks[0].slot if self.blocks else self._end
        live = self._end - first
        needed = self.prefix_tokens + live + tokens
        old = self._buffer[:, :, :, first : self._end]
        if int(needed * _SLACK) <= capacity:
            old = old.clone()
        else:
            # Half as much again while it grows, so that the copies add up to little.
            grown = max(int(needed * _SLACK), min(capacity * 3 // 2, self.limit))
            self._buffer = self._new_buffer(grown)
        self._buffer[:, :, :, self.prefix_tokens : self.prefix_tokens + live] = old
        shift = first - self.prefix_tokens
        for block in self.blocks:
            block.slot -= shift
        self._end -= shift
        self._prefix_at = [None] * len(self._prefix_at)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put rotated keys and values (H, n, d) of new tokens behind the last one."""
        place = slice(self._end, self._end + keys.shape[1])
        self._buffer[layer, 0, :, place] = keys
        self._buffer[layer, 1, :, place] = values

    def visible(self, layer: int, group: Group) -> tuple[Tensor, Tensor]:
        """Keys and values (H, m, d) that a group sees, its own included; views."""
        first = group.slot - self.prefix_tokens
        behind = (group.slot, group.start, group.origin)
        if self.prefix_tokens and self._prefix_at[layer] != behind:
            before = torch.arange(-self.prefix_tokens, 0)
            rotary = self._decoder.layers[layer].rotary
            positions = rotary.axes_of(group.start + before, group.origin + before)
            table = rotary.table(positions)
            place = slice(first, group.slot)
            self._buffer[layer, 0, :, place] = apply_rotary(self._prefix[layer, 0], *table)
            self._buffer[layer, 1, :, place] = self._prefix[layer, 1]
            self._prefix_at[layer] = behind
        both = self._buffer[layer, :, :, first : self._end + group.rows.stop]
        return both[0], both[1]

    def commit(self, block: Block, tokens: int) -> None:
        """Count a frame whose keys and values have been written."""
        block.slot = self._end
        self.blocks.append(block)
        self._end += tokens

    def leave(self) -> Block:
        """Let the first block go; its place is used by the prefix of later frames."""
        block = self.blocks.pop(0)
        block.slot = -1
        return block

    def block(self, block: Block) -> Tensor:
        """(L, 2, H, n, d) of a block in the window; a view."""
        return self._buffer[:, :, :, block.slot : block.slot + block.tokens]

    def restore(self, prefix: Tensor, live: Tensor, blocks: list[Block], position: int) -> None:
        """Take over the keys and values (L, 2, H, n, d) of blocks that are in the window."""
        self.begin(prefix)
        self.make_room(live.shape[3])
        self._buffer[:, :, :, self._end : self._end + live.shape[3]] = live
        for block in blocks:
            self.commit(block, block.tokens)
        self.position = position

    def live(self) -> Tensor:
        """(L, 2, H, n, d) of all blocks in the window; a view."""
        first = self.blocks[0].slot if self.blocks else self._end
        return self._buffer[:, :, :, first : self._end]

    def _new_buffer(self, tokens: int) -> Tensor:
        layer = self._decoder.layers[0]
        shape = (len(self._decoder.layers), 2, layer.key_heads, tokens, layer.width)
        # An inference tensor could later not be written to outside of inference mode.
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=self._decoder.dtype, device=self._decoder.device)
