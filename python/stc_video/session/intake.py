# SPDX-License-Identifier: Apache-2.0
"""Frames on their way into the memory: encoded, pruned, and gathered into prefill chunks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stc_video.errors import MemoryFullError, StreamWarning
from stc_video.memory import Frame
from stc_video.pruners import PrunedTokens
from stc_video.session.parts import SessionParts
from stc_video.session.pushed import PushedFrame, pushed_frames

if TYPE_CHECKING:
    from stc_video.session.saving import SavedSession


class Intake:
    """Encodes, prunes and counts the frames that are pushed into a session.

    One thread at a time may call :meth:`encode` and :meth:`take`; the lock guards what questions
    look at as well.

    Attributes
    ----------
    frames, tokens_seen, tokens_kept, refused
        Totals since the stream began; ``refused`` frames did not come into the memory.
    times_back
        How often a frame's time was before that of the frame before it.
    waiting
        Frames that wait for their chunk.
    """

    def __init__(self, parts: SessionParts) -> None:
        self._parts = parts
        self.clear()

    @property
    def is_empty(self) -> bool:
        """Whether no frame is in the memory, nor on its way into it."""
        return self.frames == self.refused

    def clear(self) -> None:
        """Forget the stream."""
        self.waiting: list[Frame] = []
        self.frames = self.tokens_seen = self.tokens_kept = self.refused = 0
        self.times_back = 0
        self._time: float | None = None

    def restore(self, saved: SavedSession) -> None:
        """Go on from a saved state."""
        self.frames, self.refused = saved.frames, saved.refused
        self.tokens_seen, self.tokens_kept = saved.tokens_seen, saved.tokens_kept
        self.waiting = saved.waiting

    def encode(self, pixels: Tensor, times: Sequence[float | None]) -> list[PushedFrame]:
        """Encode and prune prepared frames, and let whole chunks into the memory."""
        self._parts.check_model()
        pushed = []
        chunk = self._parts.prefill_chunk
        for first in range(0, len(pixels), chunk):
            part = slice(first, first + chunk)
            kept, grid = self._kept(pixels[part])
            records = self._parts.handle.records(self._parts.stream)
            pushed += pushed_frames(self.frames, times[part], grid, kept, records)
            try:
                self.take(kept, grid, times[part])
            except MemoryFullError:
                behind = len(pixels[part.stop :])
                self.frames, self.refused = self.frames + behind, self.refused + behind
                raise
        return pushed

    def take(
        self, kept: PrunedTokens, grid: tuple[int, int], times: Sequence[float | None]
    ) -> None:
        """Let pruned frames wait for their chunk, and whole chunks into the memory."""
        chunk = self._parts.prefill_chunk
        with self._parts.lock:
            self.waiting += self._as_frames(kept, grid, times)
            while len(self.waiting) >= chunk:
                self._prefill(chunk)

    def flush(self) -> None:
        """Let all waiting frames into the memory; the caller holds the lock."""
        if self.waiting:
            self._prefill(len(self.waiting))

    def _kept(self, pixels: Tensor) -> tuple[PrunedTokens, tuple[int, int]]:
        """Kept tokens of frames, and the grid (H, W) they are chosen from."""
        handle, stream, timer = self._parts.handle, self._parts.stream, self._parts.timer
        pixels = pixels.to(handle.model.device, handle.model.dtype)
        grid = handle.adapter.grid(pixels)
        assert grid is not None
        with torch.no_grad():
            with timer("encode"):
                features = handle.encode(pixels, stream)
            with timer("prune"):
                return handle.prune(features, stream, grid), grid

    def _as_frames(
        self, kept: PrunedTokens, grid: tuple[int, int], times: Sequence[float | None]
    ) -> list[Frame]:
        frames = []
        for row, (count, time) in enumerate(zip(kept.counts.tolist(), times, strict=True)):
            tokens, indices = kept.tokens[row, :count], kept.indices[row, :count].long().cpu()
            text = self._parts.adapter.frame_text(time)
            offsets, span, place = self._parts.adapter.place(indices, grid)
            tokens, offsets, span = self._with_text(text, tokens, offsets, span)
            self._compare_time(time)
            both_ways = self._parts.handle.adapter.bidirectional
            rows = (len(text[0]), len(text[0]) + count) if both_ways else None
            frames.append(Frame(tokens, offsets, span, self.frames, time, place, rows))
            self.frames += 1
            self.tokens_kept += count
            self.tokens_seen += grid[0] * grid[1]
        return frames

    def _with_text(
        self, text: tuple[list[int], list[int]], tokens: Tensor, offsets: Tensor, span: int
    ) -> tuple[Tensor, Tensor, int]:
        """Put the embeddings and positions of text around those of a frame's tokens."""
        if not any(text):
            return tokens, offsets, span
        parts = [torch.tensor(ids, dtype=torch.long, device=tokens.device) for ids in text]
        with torch.no_grad():
            before, after = (self._parts.handle.adapter.embed(ids) for ids in parts)
        start, end = len(before), len(before) + span
        places = [
            numbers.expand(*offsets.shape[:-1], -1)
            for numbers in (torch.arange(start), torch.arange(end, end + len(after)))
        ]
        offsets = torch.cat([places[0], offsets + start, places[1]], dim=-1)
        return torch.cat([before.to(tokens), tokens, after.to(tokens)]), offsets, end + len(after)

    def _compare_time(self, time: float | None) -> None:
        """Count a time that goes back, and warn of the first one: the order is that of pushing."""
        before, self._time = self._time, self._time if time is None else time
        if time is None or before is None or time >= before:
            return
        self.times_back += 1
        if self.times_back == 1:
            warnings.warn(
                f"push: timestamps went back from {before:.3f} s to {time:.3f} s; frames are "
                "remembered in the order in which they are pushed, with the times they were given",
                StreamWarning,
                stacklevel=2,
            )

    def _prefill(self, count: int) -> None:
        """Let the first waiting frames into the memory."""
        memory = self._parts.memory
        chunk, self.waiting = self.waiting[:count], self.waiting[count:]
        try:
            with torch.no_grad(), self._parts.timer("prefill"):
                memory.append(chunk)
        except BaseException:
            # Whatever failed, these frames will not come again.
            self.refused += sum(not memory.holds(frame.number) for frame in chunk)
            # Nor may later frames be compared with them.
            self._parts.handle.pruner.reset(self._parts.stream)
            raise
