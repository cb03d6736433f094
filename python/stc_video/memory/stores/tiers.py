# SPDX-License-Identifier: Apache-2.0
"""Stores one behind the other: what has no room in the first moves on to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from stc_video.errors import MemoryFullError


class Store(Protocol):
    """Keeps records, uint8 tensors of (layers, bytes), by the number of their block."""

    name: str
    budget: int

    def __len__(self) -> int: ...

    def __contains__(self, block: int) -> bool: ...

    @property
    def nbytes(self) -> int:
        """Bytes that are taken."""
        ...

    def blocks(self) -> list[int]:
        """Numbers of the blocks, oldest first."""
        ...

    def oldest(self) -> int | None:
        """Number of the oldest block, or None."""
        ...

    def put(self, block: int, record: Tensor) -> bool:
        """Keep a record; False, and nothing changed, if there is no room."""
        ...

    def record(self, block: int) -> Tensor:
        """Return a record (L, R); it is valid until the store changes."""
        ...

    def read(self, block: int, layer: int) -> Tensor:
        """Return one layer (R,) of a record; it is valid until the store changes."""
        ...

    def remove(self, block: int) -> None:
        """Forget a block."""
        ...

    def clear(self) -> None:
        """Forget all blocks."""
        ...

    def done_reading(self) -> None:
        """Let go of what is only held for reading."""
        ...


class TieredStore:
    """Stores in order of speed; each passes its oldest blocks on when it is full.

    Parameters
    ----------
    stores
        At least one; those with a budget of 0 are left out.
    evict
        Names a block of the last store that may be forgotten, or raises
        :class:`MemoryFullError`.
    """

    def __init__(self, stores: Sequence[Store], evict: Callable[[Store], int]) -> None:
        self.stores = [store for store in stores if store.budget > 0]
        self._evict = evict

    def __contains__(self, block: int) -> bool:
        return any(block in store for store in self.stores)

    def put(self, block: int, record: Tensor) -> None:
        """Keep a record (L, R) uint8, in the first store.

        Raises
        ------
        MemoryFullError
            If nothing may be forgotten to make room; no block is lost then.
        """
        if not self.stores:
            raise MemoryFullError(
                "memory: a block leaves the window and there is no store for it; give "
                "device_bytes, host_bytes or disk_bytes, or a larger window"
            )
        self._put(0, block, record)

    def read(self, block: int, layer: int) -> Tensor:
        """Return one layer (R,) of a block."""
        return self._home(block).read(block, layer)

    def remove(self, block: int) -> None:
        """Forget a block."""
        self._home(block).remove(block)

    def clear(self) -> None:
        """Forget all blocks."""
        for store in self.stores:
            store.clear()

    def done_reading(self) -> None:
        """Let go of what is only held for reading."""
        for store in self.stores:
            store.done_reading()

    def nbytes(self) -> dict[str, int]:
        """Bytes of each store, by name."""
        return {store.name: store.nbytes for store in self.stores}

    def _home(self, block: int) -> Store:
        return next(store for store in self.stores if block in store)

    def _put(self, level: int, block: int, record: Tensor) -> None:
        store = self.stores[level]
        while not store.put(block, record):
            oldest = store.oldest()
            if oldest is None:
                raise MemoryFullError(
                    f"memory: a block of {record.nbytes} bytes does not fit into the {store.name} "
                    f"store of {store.budget} bytes"
                )
            if level + 1 < len(self.stores):
                # It is in both stores for a moment, so that it cannot get lost.
                self._put(level + 1, oldest, store.record(oldest))
                store.remove(oldest)
            else:
                store.remove(self._evict(store))
