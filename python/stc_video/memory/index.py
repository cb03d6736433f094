# SPDX-License-Identifier: Apache-2.0
"""The mean keys of all blocks, by which blocks are found again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

_FIRST_CAPACITY = 64


class BlockIndex:
    """One vector per block and layer: its mean key in front of the rotation, all key heads.

    Rows are in temporal order. Forgotten ones leave holes that are closed when room is needed, so
    that the index never holds more than twice the blocks there are.

    Parameters
    ----------
    layers
        Number of layers.
    width
        Key heads times their size.
    device
        Where to keep the vectors, in float32.
    nearest
        Whether to keep track of each block's most similar earlier one.
    """

    def __init__(self, layers: int, width: int, device: torch.device, *, nearest: bool) -> None:
        self._keys = torch.zeros((layers, 0, width), dtype=torch.float32, device=device)
        self._numbers: list[int] = []  # of all rows, holes included
        self._rows: dict[int, int] = {}  # of the blocks there are
        self._tracks_nearest = nearest
        self._nearest: dict[int, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the vectors."""
        return self._keys.nbytes

    def numbers(self) -> list[int]:
        """Numbers of all blocks, in temporal order."""
        return list(self._rows)

    def add(self, number: int, keys: Tensor) -> None:
        """Add a block, newer than all others, with its mean keys (L, W)."""
        if len(self._numbers) == self._keys.shape[1]:
            self._make_room()
        row = len(self._numbers)
        self._keys[:, row] = keys
        self._numbers.append(number)
        self._rows[number] = row
        if self._tracks_nearest:
            self._find_nearest(number)

    def remove(self, number: int) -> None:
        """Forget a block."""
        del self._rows[number]
        self._nearest.pop(number, None)

    def vectors(self, layer: int) -> Tensor:
        """(B, W) mean keys of all blocks in one layer, in temporal order."""
        if len(self._rows) == len(self._numbers):
            return self._keys[layer, : len(self._numbers)]
        return self._keys[layer, self._alive()]

    def all_vectors(self) -> Tensor:
        """(L, B, W) mean keys of all blocks."""
        return self._keys[:, self._alive()]

    def most_redundant(self, among: Iterable[int]) -> tuple[int, int] | None:
        """Find the block most like an earlier one, and that earlier one; None if there is none."""
        allowed = set(among)
        while True:
            choices = [(*self._nearest[n], n) for n in allowed if n in self._nearest]
            if not choices:
                return None
            _, neighbour, number = max(choices)
            if neighbour in self._rows:
                return number, neighbour
            self._find_nearest(number)

    def merge(self, number: int, into: int, weights: tuple[int, int]) -> None:
        """Replace the vector of a block by a weighted mean, and forget the other block."""
        first, second = self._rows[into], self._rows[number]
        keep, gone = weights
        mean = (keep * self._keys[:, first] + gone * self._keys[:, second]) / (keep + gone)
        self._keys[:, first] = mean
        self.remove(number)

    def clear(self) -> None:
        """Forget all blocks."""
        self._keys = self._keys[:, :0].clone()
        self._numbers.clear()
        self._rows.clear()
        self._nearest.clear()

    def nearest(self) -> list[tuple[int, float, int]]:
        """Each block with its likeness to the most similar earlier one, and that one's number."""
        return [(number, *found) for number, found in self._nearest.items()]

    def restore(
        self, numbers: list[int], keys: Tensor, nearest: Iterable[tuple[int, float, int]] = ()
    ) -> None:
        """Take over blocks, their vectors (L, B, W), and what `nearest` returned."""
        self.clear()
        self._keys = keys.to(self._keys.device).contiguous()
        self._numbers = list(numbers)
        self._rows = {number: row for row, number in enumerate(numbers)}
        self._nearest = {number: (likeness, other) for number, likeness, other in nearest}

    def _alive(self) -> Tensor:
        return torch.tensor(list(self._rows.values()), dtype=torch.long, device=self._keys.device)

    def _make_room(self) -> None:
        """Close the holes if there are many; double the capacity otherwise."""
        capacity = self._keys.shape[1]
        count = len(self._rows)
        if count > capacity * 3 // 4 or capacity == 0:
            capacity = max(_FIRST_CAPACITY, 2 * capacity)
        with torch.inference_mode(False):
            new = self._keys.new_zeros((self._keys.shape[0], capacity, self._keys.shape[2]))
        new[:, :count] = self._keys[:, self._alive()]
        self._keys = new
        self._numbers = list(self._rows)
        self._rows = {number: row for row, number in enumerate(self._numbers)}

    def _find_nearest(self, number: int) -> None:
        """Compare a block with all earlier ones: mean over the layers of the cosine."""
        self._nearest.pop(number, None)
        row = self._rows[number]
        earlier = [(r, n) for n, r in self._rows.items() if r < row]
        if not earlier:
            return
        rows = torch.tensor([r for r, _ in earlier], device=self._keys.device)
        block = normalize(self._keys[:, row], dim=-1)
        others = normalize(self._keys[:, rows], dim=-1)
        likeness = torch.einsum("lbw,lw->b", others, block) / len(block)
        best = int(likeness.argmax())
        self._nearest[number] = (float(likeness[best]), earlier[best][1])
