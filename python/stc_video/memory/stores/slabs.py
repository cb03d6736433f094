# SPDX-License-Identifier: Apache-2.0
"""Blocks in a few large allocations, on the device or in pinned host memory."""

from __future__ import annotations

import bisect

import torch
from torch import Tensor

_ALIGNMENT = 256


class SlabStore:
    """Keeps records of any size inside slabs that are allocated when they are needed.

    Pinning memory block by block is slow and runs into the kernel's limit on mappings; a slab
    holds many blocks. Freed space is merged with its neighbours and used again.

    Parameters
    ----------
    name
        ``"device"`` or ``"host"``, for statistics.
    device
        Where the slabs are. In host memory they are pinned if there is a CUDA device.
    budget
        Most bytes of all slabs together.
    slab_bytes
        Size of a slab; the last one may be smaller.
    """

    def __init__(
        self, name: str, device: torch.device, budget: int, slab_bytes: int = 64 << 20
    ) -> None:
        self.name = name
        self.budget = budget
        self._device = device
        self._slab_bytes = slab_bytes
        self._slabs: list[Tensor] = []
        # Free stretches (slab, start, end), sorted.
        self._free: list[tuple[int, int, int]] = []
        self._places: dict[int, tuple[int, int, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, block: int) -> bool:
        return block in self._places

    @property
    def nbytes(self) -> int:
        """Bytes that are allocated, used or not."""
        return sum(slab.nbytes for slab in self._slabs)

    def blocks(self) -> list[int]:
        """Numbers of the blocks, oldest first."""
        return sorted(self._places)

    def oldest(self) -> int | None:
        """Number of the oldest block, or None."""
        return min(self._places, default=None)

    def put(self, block: int, record: Tensor) -> bool:
        """Copy a record (L, R) uint8 into the store; False if there is no room."""
        place = self._allocate(_aligned(record.nbytes))
        if place is None:
            return False
        slab, start = place
        target = self._slabs[slab][start : start + record.nbytes].view(record.shape)
        target.copy_(record)
        self._places[block] = (slab, start, tuple(record.shape))
        return True

    def record(self, block: int) -> Tensor:
        """Return a block's record (L, R), a view."""
        slab, start, shape = self._places[block]
        size = shape[0] * shape[1]
        return self._slabs[slab][start : start + size].view(shape)

    def read(self, block: int, layer: int) -> Tensor:
        """Return one layer (R,) of a block, a view."""
        return self.record(block)[layer]

    def remove(self, block: int) -> None:
        """Free a block's space."""
        slab, start, shape = self._places.pop(block)
        end = start + _aligned(shape[0] * shape[1])
        at = bisect.bisect(self._free, (slab, start, end))
        if at < len(self._free) and self._free[at][:2] == (slab, end):
            end = self._free.pop(at)[2]
        if at > 0 and self._free[at - 1][0] == slab and self._free[at - 1][2] == start:
            start = self._free.pop(at - 1)[1]
            at -= 1
        self._free.insert(at, (slab, start, end))

    def clear(self) -> None:
        """Forget all blocks and give the memory back."""
        self._slabs.clear()
        self._free.clear()
        self._places.clear()

    def done_reading(self) -> None:
        """Nothing is held for reading."""

    def _allocate(self, size: int) -> tuple[int, int] | None:
        """Take space from the first free stretch that is large enough, or from a new slab."""
        for at, (slab, start, end) in enumerate(self._free):
            if end - start >= size:
                if end - start == size:
                    del self._free[at]
                else:
                    self._free[at] = (slab, start + size, end)
                return slab, start
        room = self.budget - self.nbytes
        capacity = min(max(self._slab_bytes, size), room)
        if capacity < size:
            if self._places or not self._slabs:
                return None
            # Slabs that are too small for this record take up the budget, and none is in use.
            self.clear()
            return self._allocate(size)
        self._slabs.append(self._new_slab(capacity))
        self._free.append((len(self._slabs) - 1, 0, capacity))
        return self._allocate(size)

    def _new_slab(self, size: int) -> Tensor:
        pinned = self._device.type == "cpu" and torch.cuda.is_available()
        # An inference tensor could later not be written to outside of inference mode.
        with torch.inference_mode(False):
            return torch.empty(size, dtype=torch.uint8, device=self._device, pin_memory=pinned)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
