# SPDX-License-Identifier: Apache-2.0
"""The state of each stream, and the slots of many streams side by side in one set of tensors.

Streams that arrive in one call get neighbouring slots of one slab, so that one operator reads or
writes all of them. A slab never moves, which captured graphs rely on, and goes when its last
stream has gone.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from stc_video.cacher.stats import Counters

StateT = TypeVar("StateT", bound="Buffers")


@dataclass(frozen=True)
class Layout:
    """The shape and kind of a stream's frames; with another one its state is of no use.

    ``grid`` holds SigLIP2's ``spatial_shapes`` of the frame, whose change moves tokens about
    without changing their number.
    """

    tokens: int
    channels: int
    dtype: torch.dtype
    device: torch.device
    grid: tuple[int, ...] = ()

    @classmethod
    def of(cls, frames: Tensor, grids: tuple[tuple[int, ...], ...]) -> Layout:
        """Layout of one stream's frames (F, N, C); different grids make a layout of their own."""
        grid = tuple(size for shape in dict.fromkeys(grids) for size in shape)
        return cls(frames.shape[1], frames.shape[2], frames.dtype, frames.device, grid)

    def empty(self, *leading: int) -> Tensor:
        """Return an uninitialised (*leading, tokens, channels) buffer."""
        # An inference tensor could later not be written to outside of inference mode.
        with torch.inference_mode(False):
            shape = (*leading, self.tokens, self.channels)
            return torch.empty(shape, dtype=self.dtype, device=self.device)

    def describe(self) -> str:
        """Say the layout in words."""
        dtype = str(self.dtype).removeprefix("torch.")
        grid = f" on a grid of {'x'.join(map(str, self.grid))}" if self.grid else ""
        return f"{self.tokens} tokens of {self.channels} channels{grid}, {dtype} on {self.device}"


class Buffers:
    """Base of the two states: buffers of one stream, or of many behind a leading axis of slots."""

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over all buffers."""
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, dict):
                yield from value.values()

    @property
    def nbytes(self) -> int:
        """Size of all buffers in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def slot(self: StateT, number: int) -> StateT:
        """Return views of one slot's buffers."""
        with torch.inference_mode(False):
            return self._map(lambda tensor: tensor[number])

    def clone(self: StateT) -> StateT:
        """Return a copy that shares no memory with this one."""
        with torch.inference_mode(False):
            return self._map(torch.clone)

    def copy_(self: StateT, other: StateT) -> None:
        """Take over the values of another state of the same layout."""
        for mine, its in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(its)

    def _map(self: StateT, function: Callable[[Tensor], Tensor]) -> StateT:
        changed: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                changed[item.name] = function(value)
            elif isinstance(value, dict):
                changed[item.name] = {key: function(tensor) for key, tensor in value.items()}
        return replace(self, **changed)  # type: ignore[type-var]


@dataclass
class Stream:
    """One stream: its state, if any, and its totals.

    Attributes
    ----------
    name
        Its name.
    layout
        Layout of its last frame.
    state
        What is kept of it: views of its slot, or buffers of its own in a stream that was taken
        out of its cacher to be saved.
    calls
        Calls since the state was started, for a schedule.
    counters
        Its totals.
    restart_reason
        Why the next frame is dense.
    slot
        The place that its state has in the cacher's pool.
    history
        What its policy has learned from earlier frames, if it learns: a dataclass of numbers.
    """

    name: str
    layout: Layout | None = None
    state: Buffers | None = None
    calls: int = 0
    counters: Counters = field(default_factory=Counters)
    restart_reason: str = ""
    slot: Slot | None = None
    history: object | None = None

    def restart(self, reason: str) -> None:
        """Drop the state; the next frame is dense and gives this reason."""
        if self.state is not None:
            self.counters.resets += 1
        self.drop_state()
        self.layout, self.calls, self.restart_reason = None, 0, reason
        self.history = None

    def drop_state(self) -> None:
        """Forget what was kept and give the slot back."""
        if self.slot is not None:
            self.slot.release()
        self.state = self.slot = None

    def meet(self, layout: Layout) -> None:
        """Restart if the input no longer has the layout that the state was made for."""
        if self.layout is not None and self.layout != layout:
            self.restart(f"layout changed to {layout.describe()}")
        self.layout = layout

    def detached(self) -> Stream:
        """Return a copy that shares nothing with this stream and holds no slot."""
        state = None if self.state is None else self.state.clone()
        counters, history = replace(self.counters), copy.deepcopy(self.history)
        return replace(self, state=state, counters=counters, slot=None, history=history)

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        state = self.state  # another thread may reset it
        return 0 if state is None else state.nbytes


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of streams; raises ValueError if they are not different, or one is empty."""
    names = (names,) if isinstance(names, str) else tuple(names)
    if not names or len(set(names)) != len(names) or not all(names):
        raise ValueError(
            f"streams: names must be one or more different, non-empty names, got {list(names)}"
        )
    return names


def check_room(streams: Mapping[str, Stream], names: Sequence[str], limit: int) -> None:
    """Raise ValueError if streams of these names would be kept beyond a limit.

    Nobody's state is ever dropped to make room.
    """
    known = list(streams.items())  # other threads may add some
    kept = {name for name, stream in known if stream.state is not None} | set(names)
    if len(kept) > limit:
        raise ValueError(
            f"streams: at most {limit} streams (max_streams) can be kept at a time, "
            f"got {len(kept)}; reset(stream) frees one"
        )


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
    state: Buffers
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

    def begins_with(self, numbers: Sequence[int], room: int) -> bool:
        """Whether these are its first slots, in order, and there are so many that can be read."""
        return room <= self.slots and list(numbers) == list(range(len(numbers)))

    def take(self) -> int:
        """Take the first free slot."""
        return heapq.heappop(self._free)

    def release(self, number: int) -> None:
        """Give a slot back."""
        heapq.heappush(self._free, number)


@dataclass(eq=False)
class Slot:
    """One stream's place in the pool.

    Attributes
    ----------
    pool, slab, number
        Where it is.
    expected
        How many patches the stream's next frame is expected to encode, for a policy that begins
        before it knows; None if nothing is expected.
    """

    pool: StreamPool
    slab: Slab
    number: int
    expected: int | None = None

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
        self, streams: Sequence[Stream], key: Hashable, allocate: Callable[[int], Buffers]
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

    def reserve(self, count: int, key: Hashable, allocate: Callable[[int], Buffers]) -> None:
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

    def _add(self, key: Hashable, allocate: Callable[[int], Buffers], count: int) -> Slab:
        slab = Slab(key, allocate(count), count)
        self.slabs.append(slab)
        return slab

    def _settle(self, stream: Stream, slab: Slab) -> None:
        number = slab.take()
        stream.slot = Slot(self, slab, number)
        stream.state = slab.state.slot(number)
