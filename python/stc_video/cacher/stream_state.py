# SPDX-License-Identifier: Apache-2.0
"""What is kept per stream, in preallocated buffers of known size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from stc_video.cacher.stats import Counters

if TYPE_CHECKING:
    from stc_video.cacher.policies.effort import Effort
    from stc_video.cacher.policies.promise import Ledger
    from stc_video.cacher.stream_pool import Slot

StateT = TypeVar("StateT", bound="_Buffers")


@dataclass(frozen=True)
class Layout:
    """What must stay the same for a stream's state to be of use.

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


class _Buffers:
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
class MotionState(_Buffers):
    """State of the ``motion`` policy; N tokens, C channels, L cached layers.

    Attributes
    ----------
    keys, values
        (L, N, C) projections of each token as it was last encoded.
    reference
        (N, C) input of the first attention at which each token was last encoded.
    last_input
        (N, C) input of the first layer in the last frame, to recognise a repeated frame.
    output
        (N, C) output of the last layer.
    staleness
        (N,) float32, drift and age of each token summed up since it was last encoded.
    tail_input
        (N, C) input of the layers that may run for all tokens, or None if there are none.
    hidden
        Outputs of those layers, by number, whose hidden states the caller asks for.
    """

    keys: Tensor
    values: Tensor
    reference: Tensor
    last_input: Tensor
    output: Tensor
    staleness: Tensor
    tail_input: Tensor | None
    hidden: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        layout: Layout,
        layers: int,
        has_tail: bool,
        hidden: frozenset[int],
        slots: tuple[int, ...] = (),
    ) -> MotionState:
        """Allocate the buffers for a tower of ``layers`` layers, for one stream or for slots."""
        with torch.inference_mode(False):
            shape = (*slots, layout.tokens)
            staleness = torch.zeros(shape, dtype=torch.float32, device=layout.device)
        return cls(
            keys=layout.empty(*slots, layers),
            values=layout.empty(*slots, layers),
            reference=layout.empty(*slots),
            last_input=layout.empty(*slots),
            output=layout.empty(*slots),
            staleness=staleness,
            tail_input=layout.empty(*slots) if has_tail else None,
            hidden={layer: layout.empty(*slots) for layer in sorted(hidden)},
        )


@dataclass
class StcState(_Buffers):
    """State of the ``stc`` policy: what the last dense frame left in each of L layers.

    Attributes
    ----------
    compared
        (L, N, C) keys (or values) that new ones are compared with.
    reused
        (L, N, C) values (or keys) that unselected tokens keep.
    update
        (L, N, C) what the layer added to the residual stream, attention and MLP together.
    """

    compared: Tensor
    reused: Tensor
    update: Tensor

    @classmethod
    def empty(cls, layout: Layout, layers: int, slots: tuple[int, ...] = ()) -> StcState:
        """Allocate the buffers for a tower of ``layers`` layers, for one stream or for slots."""
        return cls(*(layout.empty(*slots, layers) for _ in fields(cls)))


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
    effort
        ``motion``: how much of its frames is re-encoded.
    ledger
        ``motion``: what audits have shown, and what is owed of the promise.
    """

    name: str
    layout: Layout | None = None
    state: MotionState | StcState | None = None
    calls: int = 0
    counters: Counters = field(default_factory=Counters)
    restart_reason: str = ""
    slot: Slot | None = None
    effort: Effort | None = None
    ledger: Ledger | None = None

    def restart(self, reason: str) -> None:
        """Drop the state; the next frame is dense and gives this reason."""
        if self.state is not None:
            self.counters.resets += 1
        self.drop_state()
        self.layout, self.calls, self.restart_reason = None, 0, reason
        self.effort = self.ledger = None

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
        effort = None if self.effort is None else replace(self.effort)
        ledger = None if self.ledger is None else replace(self.ledger)
        counters = replace(self.counters)
        return replace(
            self, state=state, counters=counters, slot=None, effort=effort, ledger=ledger
        )

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes."""
        state = self.state  # another thread may reset it
        return 0 if state is None else state.nbytes
