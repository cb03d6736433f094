# SPDX-License-Identifier: Apache-2.0
"""The cacher of towers that take frames of any size: Qwen2-VL, Qwen2.5-VL, Qwen3-VL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cacher.cacher import Cacher
from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.guard import Timings
from stc_video.cacher.policy import Outputs
from stc_video.cacher.stats import FrameRecord
from stc_video.cacher.streams import Layout, Stream
from stc_video.config import DEFAULT_STREAM, CacheConfig
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.towers.block_calls import VarlenCall, bind
from stc_video.towers.call_request import looked_at
from stc_video.towers.comparison import disagreement
from stc_video.towers.gradients import refusing_gradients
from stc_video.towers.patching import InstancePatch, as_function, run_stock
from stc_video.towers.varlen import VarlenTower

#: time, height, width of a video, in temporal patches and rows
_Grid = tuple[int, int, int]


@dataclass
class Merged:
    """The tokens that a merger made of a frame.

    Attributes
    ----------
    rows
        (N, C) what they were made of.
    tokens
        (N / 4, D) the tokens.
    """

    rows: Tensor
    tokens: Tensor

    def update(self, merger: InstancePatch, rows: Tensor) -> None:
        """Merge again the blocks of rows (N, C) that are not what they were, bit for bit."""
        changed = (rows != self.rows).view(len(self.tokens), -1).any(1).nonzero()[:, 0]
        if len(changed) == len(self.tokens):
            self.tokens = merger.stock(rows)
        elif len(changed):
            blocks = rows.view(len(self.tokens), -1, rows.shape[-1])[changed]
            # Out of place: the old ones belong to a caller, or to inference mode.
            self.tokens = self.tokens.index_copy(0, changed, merger.stock(blocks.flatten(0, 1)))
        self.rows = rows


@dataclass
class VarlenStream(Stream):
    """A stream of frames of any size, with the tokens of its last frame by merger."""

    merged: dict[int, Merged] = field(default_factory=dict)

    def drop_state(self) -> None:
        """Forget what was kept and give the slot back."""
        super().drop_state()
        self.merged = {}

    def detached(self) -> VarlenStream:
        """Return a copy that shares nothing with this stream and holds no slot."""
        copy = super().detached()
        assert isinstance(copy, VarlenStream)
        copy.merged = {number: replace(merged) for number, merged in self.merged.items()}
        return copy

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        held = [part for merged in self.merged.values() for part in (merged.rows, merged.tokens)]
        return super().nbytes + sum(tensor.nbytes for tensor in held)


class VarlenCacher(Cacher):
    """A cacher that is attached to a tower of frames of any size.

    A frame is a temporal patch, two pictures. A call takes one video (or image), whose temporal
    patches are the next frames of the stream, in order; inside :meth:`streams`, one for each
    stream. The unit of reuse is a row of the tower, a patch of 14 x 14 pixels of both pictures; a
    token that leaves the merger is made anew if one of its four rows was.

    In a windowed block of Qwen2.5-VL a row attends to its window only, as in the stock tower. A
    window without a changed row is reused exactly up to the first block with full attention.
    """

    _tower: VarlenTower

    def __init__(self, tower: VarlenTower, config: CacheConfig) -> None:
        self._merger_patches: list[InstancePatch] = []
        # Mergers that were seen to take the output of their block, group by group; and those that
        # do not and run as they are (GLM-4V's takes what a convolution made of it).
        self._trusted: set[int] = set()
        self._left_alone: set[int] = set()
        # What the mergers hand out in the pass under way, by number of the merger.
        self._tokens: dict[int, Tensor] = {}
        # The blocks look at the places of one video at a time. And a row that is not encoded must
        # stay what it is, bit for bit, for its token to stay.
        super().__init__(tower, replace(config, batching="ragged", propagate=0.0))

    # -- attaching ---------------------------------------------------------------------------

    def _install(self) -> None:
        super()._install()
        try:
            for number, site in enumerate(self._tower.mergers):
                forward = as_function(self._merger_forward(number))
                self._merger_patches.append(InstancePatch.install(site.module, forward, owner=self))
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        for patch in self._merger_patches:
            patch.remove()
        self._merger_patches.clear()
        super()._remove()

    def detach(self, *, force: bool = False) -> None:
        """Take the cacher off; the tower is then exactly as before. See :meth:`Cacher.detach`."""
        if not force and not all(patch.in_place for patch in self._merger_patches):
            raise AttachError(
                f"detach: something else patched a merger of {type(self._tower.root).__name__} "
                "after the cacher; undo that first, or call detach(force=True) to put the original "
                "forwards back"
            )
        super().detach(force=force)

    def warmup(self, *args: Any, **kwargs: Any) -> Timings:
        """Not for frames of any size, whose number of rows is another one for each video.

        Raises
        ------
        UnsupportedModelError
            Always.
        """
        raise UnsupportedModelError(
            f"warmup: {type(self._tower.root).__name__} takes frames of any size, and times of one "
            "say nothing of another"
        )

    # -- the forward -------------------------------------------------------------------------

    def _check_call(self, module: nn.Module) -> bool:
        """Refuse a call before any block runs; False if the cacher is paused."""
        self._tokens = {}
        return super()._check_call(module)

    def _first_forward(self, layer: nn.Module, hidden_states: Tensor, *args: Any, **kw: Any) -> Any:
        """Forward of the first block: encodes the frames through all blocks."""
        patch = self._patches[0]
        if self._is_paused or layer is not patch.module:
            return run_stock(patch, layer, hidden_states, *args, **kw)
        self._notice_changes()
        with torch.no_grad(), self._weights.active():
            self._encode_rows(hidden_states, args, kw)
        return self._hand_out(0, hidden_states, args, kw)

    def _merger_forward(self, number: int) -> Any:
        """Forward of a merger: hands out the tokens that were made when the rows were encoded."""

        def forward(merger: nn.Module, rows: Tensor, *args: Any, **kwargs: Any) -> Any:
            patch = self._merger_patches[number]
            tokens = self._tokens.pop(number, None)
            if tokens is None or merger is not patch.module or args or kwargs:
                return run_stock(patch, merger, rows, *args, **kwargs)
            if number in self._trusted:
                self._self_check.expect_handed(rows, f"merger {number}")
            elif not self._self_check.is_handed(rows):
                self._left_alone.add(number)
                return patch.stock(rows)
            self._trusted.add(number)
            return refusing_gradients(tokens, rows, [merger.parameters()])

        return forward

    def _encode_rows(self, rows: Tensor, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
        """Encode the rows (M, C) of a call, each stream's by that stream's state."""
        request = self._watcher.take()
        self._self_check.names_hidden_states = not isinstance(request.hidden, bool)
        grids = self._grids(request.grids, len(rows), self._active or (DEFAULT_STREAM,))
        output_layers = request.layers(self._tower) | looked_at(self._tower)
        output_layers |= {site.layer for site in self._tower.mergers}
        positions = bind(self._tower.blocks[0].layer, args, kw)
        call = VarlenCall(self._tower, rows, grids, positions)
        with self._self_check.around(call, (args, kw)):
            self._encode_videos(call, output_layers)

    def _encode_videos(self, call: VarlenCall, output_layers: frozenset[int]) -> None:
        """Encode the rows (M, C) of one video for each stream."""
        rows, grids = call.states, call.grids
        names = self._active or (DEFAULT_STREAM,)
        parts: list[Outputs] = []
        tokens: list[list[Tensor]] = []
        records: list[FrameRecord] = []
        start = 0
        for name, (time, height, width) in zip(names, grids, strict=True):
            size = height * width
            frames = rows[start : start + time * size].view(time, size, -1)
            call.enter(start, height, width)  # all frames of a video have the same places
            stream = self._stream(name)
            stream.meet(Layout(size, rows.shape[1], rows.dtype, rows.device, (height, width)))
            batch = FrameBatch(frames, None, output_layers)
            try:
                outputs, frame_records = self._policy.encode([stream], batch)
            except BaseException:
                # Some of the streams of the call, and some blocks, were written to, others not.
                for touched in names:
                    self._stream(touched).restart("the call before failed")
                raise
            tokens.append(self._merge(stream, outputs))
            parts.append({layer: output.flatten(0, 1) for layer, output in outputs.items()})
            records += frame_records
            start += time * size
        self.last_frames = records
        self._pending = {
            layer: torch.cat([part[layer] for part in parts]) for layer in output_layers
        }
        self._tokens = {
            number: torch.cat(part)
            for number, part in enumerate(zip(*tokens, strict=True))
            if number not in self._left_alone
        }

    def _grids(
        self, grids: Sequence[tuple[int, ...]], rows: int, names: Sequence[str]
    ) -> list[_Grid]:
        """Check what the call says about its rows."""
        if len(grids) != len(names):
            one_each = (
                f"one video for each of the streams {', '.join(names)}"
                if self._active
                else "one video or image outside of streams()"
            )
            raise ValueError(
                f"{type(self._tower.root).__name__}: a call must have {one_each}, got grid_thw "
                f"with {len(grids)}"
            )
        sizes = sum(time * height * width for time, height, width in grids)
        odd = [grid for grid in grids if any(side % self._tower.merge for side in grid[1:])]
        if odd or sizes != rows:
            raise ValueError(
                f"{type(self._tower.root).__name__}: grid_thw must have even heights and widths "
                f"and as many places as there are rows ({rows}), got {[list(g) for g in grids]}"
            )
        return [(time, height, width) for time, height, width in grids]

    def _stream(self, name: str) -> VarlenStream:
        stream = self._streams.setdefault(name, VarlenStream(name))
        assert isinstance(stream, VarlenStream)
        return stream

    def _merge(self, stream: VarlenStream, outputs: Outputs) -> list[Tensor]:
        """Make the tokens of some frames, for each merger (frames * N / 4, D)."""
        tokens = []
        for number, site in enumerate(self._tower.mergers):
            merger = self._merger_patches[number]
            if number not in self._trusted and not self._merges_groups(number, outputs[site.layer]):
                self._left_alone.add(number)
            frames = []
            for rows in outputs[site.layer] if number not in self._left_alone else ():
                merged = stream.merged.get(number)
                if merged is None:
                    rows = rows.clone()  # what is handed out may be changed
                    merged = stream.merged[number] = Merged(rows, merger.stock(rows))
                else:
                    merged.update(merger, rows.clone())
                frames.append(merged.tokens)
            tokens.append(torch.cat(frames) if frames else outputs[site.layer])
        return tokens

    def _merges_groups(self, number: int, frames: Tensor) -> bool:
        """Whether a merger makes the same of two groups of rows of (F, N, C) as of each alone."""
        merger, group = self._merger_patches[number], self._tower.merge**2
        rows = frames[0, : 2 * group]
        try:
            second, both = merger.stock(rows[group:]), merger.stock(rows)
        except RuntimeError:  # it takes rows of another width
            return False
        return not disagreement(both[1:], second, torch.zeros_like(second))
