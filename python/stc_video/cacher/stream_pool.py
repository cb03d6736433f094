# SPDX-License-Identifier: Apache-2.0
"""Slots for the states of many streams, side by side in one set of tensors.

Streams that arrive in one call get neighbouring slots of one slab, so that one operator reads or
writes all of them. A slab never moves, which captured graphs rely on, and goes when its last
stream has gone.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from stc_video.cacher.stream_state import MotionState, StcState, Stream

State = MotionState | StcState


@dataclass(eq=False)
class Slab:
    """Slots of one layout.

    Attributes
    ----------
    key
        What tells one layout from another.
    state
        Buffers with a leading axis of slots.
    slots
        How many there are.
    is_reserved
        Whether it stays when no stream uses it.
    """

    key: Hashable
    state: State
    slots: int
    is_reserved: bool = False
    _free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begin with all slots free."""
        self._free = list(range(self.slots))

    @property
    def free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def take(self) -> int:
        """Take the first free slot."""
        return heapq.heappop(self._free)

    def release(self, number: int) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, number)


@dataclass(frozen=True)
class Slot:
    """One stream's place in the pool."""

    pool: StreamPool
    slab: Slab
    number: int

    def release(self) -> None:
        """Give the place back."""
        self.slab.release(self.number)
        self.pool.discard_unused()


@dataclass(eq=False)
class StreamPool:
    """All slabs of a cacher.

    It holds no more slots than were placed or reserved at a time; how many streams there may be
    is for the cacher to check, before a call begins.

    Attributes
    ----------
    slabs
        The slabs, oldest first.
    on_discard
        Called with each slab that goes.
    """

    slabs: list[Slab] = field(default_factory=list)
    on_discard: list[Callable[[Slab], None]] = field(default_factory=list)

    def place(
        self, streams: Sequence[Stream], key: Hashable, allocate: Callable[[int], State]
    ) -> None:
        """Give each stream a slot for a new state.

        Parameters
        ----------
        streams
            Streams without a state.
        key
            Layout of the state, such as a tuple of :class:`Layout` and options.
        allocate
            Makes buffers for a number of slots.
        """
        waiting = list(streams)
        fitting = [slab for slab in self.slabs if slab.key == key and slab.free]
        # One slab for all of them if there is one: what lies together is encoded together.
        fitting.sort(key=lambda slab: slab.free < len(waiting))
        for slab in fitting:
            while slab.free and waiting:
                self._settle(waiting.pop(0), slab)
        if waiting:
            slab = self._add(key, allocate, len(waiting))
            for stream in waiting:
                self._settle(stream, slab)

    def reserve(self, count: int, key: Hashable, allocate: Callable[[int], State]) -> None:
        """Keep room for a number of streams in one slab, whether or not they are there."""
        if not any(slab.key == key and slab.slots >= count for slab in self.slabs):
            self._add(key, allocate, count)
        for slab in self.slabs:
            slab.is_reserved |= slab.key == key and slab.slots >= count

    def discard_unused(self) -> None:
        """Free the slabs that nobody uses and nobody reserved."""
        unused = [slab for slab in self.slabs if not slab.is_reserved and slab.free == slab.slots]
        for slab in unused:
            self.slabs.remove(slab)
            for notify in self.on_discard:
                notify(slab)

    @property
    def free_bytes(self) -> int:
        """Size of the free slots in bytes."""
        return sum(slab.state.nbytes // slab.slots * slab.free for slab in self.slabs)

    def _add(self, key: Hashable, allocate: Callable[[int], State], count: int) -> Slab:
        slab = Slab(key, allocate(count), count)
        self.slabs.append(slab)
        return slab

    def _settle(self, stream: Stream, slab: Slab) -> None:
        number = slab.take()
        stream.slot = Slot(self, slab, number)
        stream.state = slab.state.slot(number)
