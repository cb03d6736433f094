# SPDX-License-Identifier: Apache-2.0
"""What runs in place of the blocks and mergers of a tower of vLLM for frames of named streams.

The tower's own forward stays in charge. For a call with names it runs once for each group of items
that can be encoded together; its first block then encodes the rows through all blocks, each stream
against its state, and the blocks behind hand out what that gave. A call without a name runs as if
nothing were there, and so do the items without a name of a mixed call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.policy import Outputs
from stc_video.cacher.stats import DENSE, FrameRecord
from stc_video.cacher.streams import Layout, StreamPool
from stc_video.cacher.varlen_cacher import Merged, VarlenStream
from stc_video.integrations.vllm.names import StreamName
from stc_video.integrations.vllm.settings import Settings
from stc_video.integrations.vllm.streams import StreamTable
from stc_video.integrations.vllm.totals import Reporter, Totals
from stc_video.integrations.vllm.tower import engine_tower, enter_frame
from stc_video.towers.comparison import disagreement
from stc_video.towers.patching import InstancePatch, as_function

#: characters of a name's digest; the number of an item has fewer
_DIGEST = 32
#: time, height and width of an item, in temporal patches and rows
_Grid = tuple[int, int, int]


@dataclass(frozen=True)
class _Item:
    """One picture or video of a call: its name, grid, and pixels (time * height * width, ...)."""

    name: StreamName
    grid: _Grid
    pixels: Tensor


@dataclass
class _Pass:
    """A run of the tower for the next frames of some streams, all of one grid."""

    streams: Sequence[VarlenStream]
    grid: _Grid
    outputs: Outputs


class StreamEncoder:
    """Encodes the frames of named streams on a tower of vLLM against what each stream left.

    Attributes
    ----------
    totals
        What was done since it was made.
    last_frames
        What happened to each frame of the last pass.

    Parameters
    ----------
    visual
        The tower, with all its heads on this device.
    settings
        The settings.
    log
        Writes a line.

    Raises
    ------
    AttributeError
        If the tower misses a part.
    """

    def __init__(self, visual: nn.Module, settings: Settings, log: Callable[[str], None]) -> None:
        self.totals = Totals()
        self.last_frames: list[FrameRecord] = []
        untyped: Any = visual
        self._visual = untyped
        self._settings = settings
        self._log = log
        self._tower = tower = engine_tower(visual)
        self._policy = MotionPolicy(tower, settings.config(), StreamPool())
        out_channels: int = untyped.out_hidden_size
        has_tail = self._policy.planner.has_tail
        self.table = StreamTable(tower, settings.bytes, out_channels, has_tail, self.totals)
        self._reporter = Reporter(log)
        self._names: Sequence[StreamName] = ()
        self._pass: _Pass | None = None
        self._is_checked = False
        self._reserved = _reserved(untyped.device, settings.bytes)
        layers = frozenset(site.layer for site in tower.mergers)
        self._output_layers = layers
        self._root = InstancePatch.install(visual, as_function(self._forward), owner=self)
        self._blocks = [
            InstancePatch.install(block.layer, as_function(self._block_forward(number)), owner=self)
            for number, block in enumerate(tower.blocks)
        ]
        self._mergers = [
            InstancePatch.install(
                site.module, as_function(self._merger_forward(number)), owner=self
            )
            for number, site in enumerate(tower.mergers)
        ]

    #: what whoever patches the tower next is told that it has
    title = "a stream encoder of stc_video"

    @contextmanager
    def naming(self, names: Sequence[StreamName]) -> Iterator[None]:
        """Say inside whose the items of the tower's next call are, in their order."""
        self._names = names
        try:
            yield
        finally:
            self._names = ()

    def detach(self) -> None:
        """Take everything off the tower, which is the stock one then."""
        self.table.clear()
        for patch in (self._root, *self._blocks, *self._mergers):
            patch.remove()

    # -- the forwards ------------------------------------------------------------------------

    def _forward(self, visual: nn.Module, x: Tensor, grid_thw: Any, **kwargs: Any) -> Tensor:
        """Forward of the tower: encodes named items by their streams, and the others as stock."""
        names = self._numbered(self._names)
        if kwargs or not any(name.key for name in names):
            stocked: Tensor = self._root.stock(x, grid_thw, **kwargs)
            return stocked
        self._reserved = None
        grids = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
        pixels = x.split([time * height * width for time, height, width in grids])
        items = [_Item(*of) for of in zip(names, map(tuple, grids), pixels, strict=True)]
        found = self._run(items, [at for at, item in enumerate(items) if not item.name.key])
        for group, streams in self._groups(items):
            found |= self._encode(items, group, streams) if streams else self._run(items, group)
        self._end(items)
        return torch.cat([found[at] for at in range(len(items))])

    def _numbered(self, names: Sequence[StreamName]) -> Sequence[StreamName]:
        """With ``items``, let an item without a name be a stream of its own, by its number."""
        if not self._settings.items:
            return names
        return [name if name.key else StreamName(f"{at}", True) for at, name in enumerate(names)]

    def _block_forward(self, number: int) -> Callable[..., Tensor]:
        """Forward of a block: the first one encodes, all hand out what their block gave."""

        def forward(layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            run = self._pass
            if run is None:
                stocked: Tensor = self._blocks[number].stock(x, *args, **kwargs)
                return stocked
            if number == 0:
                self._encode_rows(run, x, kwargs)
            # Nobody looks at the output of a block that is not asked for.
            output = run.outputs.pop(number, None)
            return x if output is None else output.view(x.shape)

        return forward

    def _merger_forward(self, number: int) -> Callable[..., Tensor]:
        """Forward of a merger: makes those tokens anew whose rows are not what they were."""

        def forward(merger: nn.Module, rows: Tensor) -> Tensor:
            patch, run = self._mergers[number], self._pass
            if run is None:
                stocked: Tensor = patch.stock(rows)
                return stocked
            time, height, width = run.grid
            frames = rows.view(len(run.streams), time, height * width, rows.shape[-1])
            tokens = []
            for stream, own in zip(run.streams, frames, strict=True):
                for frame in own:
                    merged = stream.merged.get(number)
                    if merged is None:
                        stream.merged[number] = merged = Merged(frame.clone(), patch.stock(frame))
                    else:
                        merged.update(patch, frame.clone())
                    tokens.append(merged.tokens)
            return torch.cat(tokens)

        return forward

    # -- encoding ----------------------------------------------------------------------------

    def _groups(self, items: Sequence[_Item]) -> Iterator[tuple[list[int], list[VarlenStream]]]:
        """Put together the named items that one pass can encode; those that it cannot come alone.

        A pass has items of one grid, of different streams that have a state already. A stream's
        items stay in order. No streams are returned for an item that is to be encoded as stock.
        """
        waiting: dict[_Grid, tuple[list[int], list[VarlenStream]]] = {}
        names: set[str] = set()
        for at, item in enumerate(items):
            if not item.name.key:
                continue
            if item.name.key in names or not self.table.is_ready(item.name.key, self._layout(item)):
                # Its state may take the room of one of those that wait.
                yield from waiting.values()
                waiting, names = {}, set()
            stream = self.table.meet(item.name.key, self._layout(item))
            if stream is None or stream.state is None:
                yield [at], [] if stream is None else [stream]
                continue
            group, streams = waiting.setdefault(item.grid, ([], []))
            group.append(at)
            streams.append(stream)
            names.add(item.name.key)
        yield from waiting.values()

    def _layout(self, item: _Item) -> Layout:
        _, height, width = item.grid
        channels = self._tower.blocks[0].channels
        visual = self._visual
        return Layout(height * width, channels, visual.dtype, visual.device, (height, width))

    def _run(self, items: Sequence[_Item], numbers: Sequence[int]) -> dict[int, Tensor]:
        """Run the tower for some items: the stock one, unless a pass is under way."""
        if not numbers:
            return {}
        grids = [list(items[at].grid) for at in numbers]
        tokens = self._root.stock(torch.cat([items[at].pixels for at in numbers]), grids)
        sizes = [len(items[at].pixels) // self._tower.merge**2 for at in numbers]
        return dict(zip(numbers, tokens.split(sizes), strict=True))

    def _encode(
        self, items: Sequence[_Item], numbers: Sequence[int], streams: Sequence[VarlenStream]
    ) -> dict[int, Tensor]:
        """Encode the items of one group against their streams' states."""
        self._pass = _Pass(streams, items[numbers[0]].grid, {})
        try:
            tokens = self._run(items, numbers)
        except BaseException:
            self.table.drop([stream.name for stream in streams])  # written to in part
            raise
        finally:
            self._pass = None
        self.table.count()
        return self._checked(items, numbers, tokens)

    def _encode_rows(self, run: _Pass, x: Tensor, kwargs: dict[str, Any]) -> None:
        """Encode the rows (M, 1, C) of a pass through all blocks."""
        time, height, width = run.grid
        size = height * width
        cos, sin = (kwargs[f"rotary_pos_emb_{name}"][:size] for name in ("cos", "sin"))
        enter_frame(self._tower, cos, sin, (height, width))
        frames = x.view(len(run.streams) * time, size, x.shape[-1])
        batch = FrameBatch(frames, None, self._output_layers)
        run.outputs, records = self._policy.encode(run.streams, batch)
        self.last_frames = records
        for record in records:
            setattr(self.totals, record.kind, getattr(self.totals, record.kind) + 1)
            self.totals.rows += size
            self.totals.rows_encoded += _encoded(record, size)

    def _checked(
        self, items: Sequence[_Item], numbers: Sequence[int], tokens: dict[int, Tensor]
    ) -> dict[int, Tensor]:
        """Compare the first frames with those of the stock tower; take all off if they differ."""
        if self._is_checked:
            return tokens
        self._is_checked = True
        stock = self._run(items, numbers)
        for at, expected in stock.items():
            count = len(expected) // items[at].grid[0]
            first, ours = expected[:count], tokens[at][:count]
            if reason := disagreement(first, ours, torch.zeros_like(first)):
                self.detach()
                self._log(f"taken off, and the stock tower runs: {reason}")
                return stock
        return tokens

    def _end(self, items: Sequence[_Item]) -> None:
        """Drop the streams that end with a call, and report."""
        last = {item.name.key for item in items if item.name.is_last}
        numbers = {key for key in last if len(key) < _DIGEST}
        self.table.drop(numbers)
        self.totals.ended += self.table.drop(last - numbers)
        self._reporter.report(self.totals)


def _encoded(record: FrameRecord, size: int) -> int:
    """Number of rows of a frame that passed through the layers."""
    selected = sum(len(rows) for rows in record.selected[:1])
    return size if record.kind == DENSE else selected


def _reserved(device: torch.device, size: int) -> Tensor | None:
    """Hold what the states may take until the first of them, so that vLLM counts it as taken.

    vLLM measures on a GPU how much memory its model leaves for the KV cache. What is freed stays
    with torch, for the states. On a CPU it is told how much there is.
    """
    if device.type == "cpu":
        return None
    return torch.empty(size, dtype=torch.uint8, device=device)
