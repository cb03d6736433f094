# SPDX-License-Identifier: Apache-2.0
"""What runs in place of the blocks of a tower of vLLM for frames of named streams.

The tower's own forward stays in charge. For a call with names it runs once for each group of items
that can be encoded together; its first block then encodes the rows through all blocks, each stream
against its state, and the blocks behind hand out what that gave. A call without a name runs as if
nothing were there, and so do the items without a name of a mixed call.

``qwen`` and ``siglip`` say what a call and a block of their towers look like.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from stc_video.cacher.dense import FrameBatch
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.policy import Outputs
from stc_video.cacher.stats import DENSE, FrameRecord
from stc_video.cacher.streams import Layout, StreamPool
from stc_video.cacher.varlen_cacher import VarlenStream
from stc_video.integrations.vllm.names import StreamName, stream_of
from stc_video.integrations.vllm.settings import Settings
from stc_video.integrations.vllm.streams import StreamTable
from stc_video.integrations.vllm.totals import Reporter, Totals
from stc_video.towers.comparison import disagreement
from stc_video.towers.patching import InstancePatch, as_function
from stc_video.towers.varlen import VarlenTower

#: characters of a name's digest; the number of an item has fewer
_DIGEST = 32
#: time, height and width of an item, in temporal patches and rows
_Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """One picture or video of a call: its name, grid, and pixels, time first."""

    name: StreamName
    grid: _Grid
    pixels: Tensor


@dataclass
class Pass:
    """A run of the tower for the next frames of some streams, all of one grid."""

    streams: Sequence[VarlenStream]
    grid: _Grid
    outputs: Outputs


class StreamEncoder(ABC):
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

    #: what whoever patches the tower next is told that it has
    title = "a stream encoder of stc_video"

    def __init__(self, visual: nn.Module, settings: Settings, log: Callable[[str], None]) -> None:
        self.totals = Totals()
        self.last_frames: list[FrameRecord] = []
        self._visual = cast(Any, visual)
        self._settings = settings
        self._log = log
        self._tower = tower = self._take_apart(visual)
        self._policy = MotionPolicy(tower, settings.config(), StreamPool())
        out_channels: int = self._visual.out_hidden_size if tower.mergers else 0
        has_tail = self._policy.planner.has_tail
        self.table = StreamTable(tower, settings.bytes, out_channels, has_tail, self.totals)
        self._reporter = Reporter(log)
        self._names: Sequence[StreamName] = ()
        self._pass: Pass | None = None
        self._is_checked = False
        self._reserved = _reserved(next(visual.parameters()).device, settings.bytes)
        last = len(tower.blocks) - 1
        self._output_layers = frozenset(site.layer for site in tower.mergers) | {last}
        self._root = InstancePatch.install(visual, as_function(self._forward), owner=self)
        self._blocks = [
            InstancePatch.install(block.layer, as_function(self._block_forward(number)), owner=self)
            for number, block in enumerate(tower.blocks)
        ]

    @contextmanager
    def naming(self, names: Sequence[StreamName], fields: Mapping[str, Any]) -> Iterator[None]:
        """Say inside whose the items of the tower's next call are, in their order.

        ``fields`` are what the model gets of them.
        """
        if self._settings.items:  # an item without a name is a stream of its own, by its number
            names = [
                name if name.key else StreamName(f"{at}", True) for at, name in enumerate(names)
            ]
        self._names = self._in_call(names, fields)
        try:
            yield
        finally:
            self._names = ()

    def detach(self) -> None:
        """Take everything off the tower, which is the stock one then."""
        self.table.clear()
        for patch in (self._root, *self._blocks):
            patch.remove()

    # -- what towers differ in ---------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def _take_apart(visual: nn.Module) -> VarlenTower:
        """Take the tower apart; AttributeError if a part of it is missing."""

    @abstractmethod
    def _forward(self, visual: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Forward of the tower: encodes named items by their streams, and the others as stock."""

    @abstractmethod
    def _stock(self, items: Sequence[Item]) -> Tensor:
        """Call the stock forward of the tower for some items."""

    @abstractmethod
    def _frames(self, run: Pass, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Return the input of the first block as frames (F, N, C), and enter where its rows are."""

    def _in_call(
        self, names: Sequence[StreamName], fields: Mapping[str, Any]
    ) -> Sequence[StreamName]:
        """Names of the items of a call, by those of the pictures and videos."""
        return names

    def _returned(self, output: Tensor) -> Any:
        """Return the output of a block as it returns it."""
        return output

    # -- the forwards ------------------------------------------------------------------------

    def _block_forward(self, number: int) -> Callable[..., Any]:
        """Forward of a block: the first one encodes, all hand out what their block gave."""

        def forward(layer: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
            run = self._pass
            if run is None:
                return self._blocks[number].stock(x, *args, **kwargs)
            if number == 0:
                self._encode_rows(run, self._frames(run, x, kwargs))
            # Nobody looks at the output of a block that is not asked for.
            output = run.outputs.pop(number, None)
            return self._returned(x if output is None else output.view(x.shape))

        return forward

    # -- encoding ----------------------------------------------------------------------------

    def _tokens(self, items: Sequence[Item]) -> Tensor:
        """Encode the items of a call, and report."""
        self._reserved = None
        found = self._run(items, [at for at, item in enumerate(items) if not item.name.key])
        for group, streams in self._groups(items):
            found |= self._encode(items, group, streams) if streams else self._run(items, group)
        self._end(items)
        return torch.cat([found[at] for at in range(len(items))])

    def _groups(self, items: Sequence[Item]) -> Iterator[tuple[list[int], list[VarlenStream]]]:
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

    def _layout(self, item: Item) -> Layout:
        _, height, width = item.grid
        channels = self._tower.blocks[0].channels
        visual = self._visual
        return Layout(height * width, channels, visual.dtype, visual.device, (height, width))

    def _run(self, items: Sequence[Item], numbers: Sequence[int]) -> dict[int, Tensor]:
        """Run the tower for some items: the stock one, unless a pass is under way."""
        if not numbers:
            return {}
        tokens = self._stock([items[at] for at in numbers])
        sizes = [len(items[at].pixels) // self._tower.merge**2 for at in numbers]
        return dict(zip(numbers, tokens.split(sizes), strict=True))

    def _encode(
        self, items: Sequence[Item], numbers: Sequence[int], streams: Sequence[VarlenStream]
    ) -> dict[int, Tensor]:
        """Encode the items of one group against their streams' states."""
        self._pass = Pass(streams, items[numbers[0]].grid, {})
        try:
            tokens = self._run(items, numbers)
        except BaseException:
            self.table.drop([stream_of(stream.name) for stream in streams])  # written to in part
            raise
        finally:
            self._pass = None
        self.table.count()
        return self._checked(items, numbers, tokens)

    def _encode_rows(self, run: Pass, frames: Tensor) -> None:
        """Encode frames (F, N, C) through all blocks."""
        size = frames.shape[1]
        batch = FrameBatch(frames, None, self._output_layers)
        run.outputs, records = self._policy.encode(run.streams, batch)
        self.last_frames = records
        for record in records:
            setattr(self.totals, record.kind, getattr(self.totals, record.kind) + 1)
            self.totals.rows += size
            self.totals.rows_encoded += _encoded(record, size)

    def _checked(
        self, items: Sequence[Item], numbers: Sequence[int], tokens: dict[int, Tensor]
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

    def _end(self, items: Sequence[Item]) -> None:
        """Drop the streams that end with a call, and report."""
        last = {item.name.stream for item in items if item.name.is_last}
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
