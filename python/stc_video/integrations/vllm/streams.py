# SPDX-License-Identifier: Apache-2.0
"""The states of all streams of a worker, within a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

import torch

from stc_video.cacher.motion.state import MotionState
from stc_video.cacher.streams import Layout
from stc_video.cacher.varlen_cacher import VarlenStream
from stc_video.integrations.vllm.names import stream_of
from stc_video.integrations.vllm.totals import Totals
from stc_video.towers.varlen import VarlenTower


class StreamTable:
    """Streams by the digest of their name, the one used least recently first.

    Parameters
    ----------
    tower
        Whose frames they are.
    budget
        Bytes that all states may hold together.
    out_channels
        Width of a token, summed up over the mergers.
    has_tail
        Whether a state holds the input of the last layers.
    totals
        Where evictions are counted.
    """

    def __init__(
        self, tower: VarlenTower, budget: int, out_channels: int, has_tail: bool, totals: Totals
    ) -> None:
        self._tower = tower
        self._budget = budget
        self._out_channels = out_channels
        self._has_tail = has_tail
        self._totals = totals
        self._streams: OrderedDict[str, VarlenStream] = OrderedDict()

    def meet(self, key: str, layout: Layout) -> VarlenStream | None:
        """Return the stream whose next frames have a layout, making room for it if it is new.

        None if its state does not fit into the budget. Others may be evicted for a new one.
        """
        stream = self._streams.setdefault(key, VarlenStream(key))
        stream.meet(layout)
        self._streams.move_to_end(key)
        if stream.state is None and not self._make_room(self._size(layout)):
            del self._streams[key]
            self._totals.too_large += 1
            return None
        return stream

    def is_ready(self, key: str, layout: Layout) -> bool:
        """Whether a stream has a state for frames of a layout."""
        stream = self._streams.get(key)
        return stream is not None and stream.state is not None and stream.layout == layout

    def drop(self, keys: Collection[str]) -> int:
        """Forget streams with all their views; returns how many of them there were."""
        known = [key for key in self._streams if stream_of(key) in keys]
        for key in known:
            self._streams.pop(key).drop_state()
        self.count()
        return len({stream_of(key) for key in known})

    def clear(self) -> None:
        """Forget all streams, as after a change of weights."""
        self.drop([stream_of(key) for key in self._streams])

    def count(self) -> None:
        """Enter into the totals how many streams there are, and what they hold."""
        for key in [key for key, stream in self._streams.items() if stream.state is None]:
            del self._streams[key]  # all its frames had NaN or Inf
        self._totals.streams = len(self._streams)
        self._totals.state_bytes = sum(stream.nbytes for stream in self._streams.values())

    def _make_room(self, size: int) -> bool:
        """Evict streams until there is room for so many bytes; False if there never is."""
        if size > self._budget:
            return False
        held = sum(stream.nbytes for stream in self._streams.values())
        while held + size > self._budget:
            key, stream = next((k, s) for k, s in self._streams.items() if s.state is not None)
            held -= stream.nbytes
            stream.drop_state()
            del self._streams[key]
            self._totals.evicted += 1
        return True

    def _size(self, layout: Layout) -> int:
        """Bytes of the state of a stream with such frames."""
        nowhere = Layout(layout.tokens, layout.channels, layout.dtype, torch.device("meta"))
        mergers = self._tower.mergers
        layers = len(self._tower.blocks)
        hidden = frozenset(site.layer for site in mergers) - {layers - 1}
        state = MotionState.empty(nowhere, layers, self._has_tail, hidden)
        merged = (
            layout.tokens * layout.channels * len(mergers)
            + layout.tokens // self._tower.merge**2 * self._out_channels
        )
        return state.nbytes + merged * layout.dtype.itemsize
