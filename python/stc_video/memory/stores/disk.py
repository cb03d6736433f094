# SPDX-License-Identifier: Apache-2.0
"""Blocks as memory-mapped safetensors files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

__all__ = ["DiskStore", "link_or_copy", "read_record", "write_record"]

_PER_FOLDER = 1000
_OPEN_FILES = 64


class DiskStore:
    """Keeps one file per block. Files are never changed, so that a save can link to them.

    Parameters
    ----------
    folder
        Where the files go; None makes a temporary folder that :meth:`clear` removes.
    budget
        Most bytes of all files together.
    """

    name = "disk"

    def __init__(self, folder: str | Path | None, budget: int) -> None:
        self.budget = budget
        self._root = None if folder is None else Path(folder)
        # A folder of its own, so that two streams, or a killed process, never mix up files.
        self._folder: Path | None = None
        self._sizes: dict[int, int] = {}
        self._used = 0
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sizes)

    def __contains__(self, block: int) -> bool:
        return block in self._sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return self._used

    def blocks(self) -> list[int]:
        """Numbers of the blocks, oldest first."""
        return sorted(self._sizes)

    def oldest(self) -> int | None:
        """Number of the oldest block, or None."""
        return min(self._sizes, default=None)

    def put(self, block: int, record: Tensor) -> bool:
        """Write a record (L, R) uint8; False if there is no room."""
        if self._used + record.nbytes + _header_bytes(record) > self.budget:
            return False
        path = self.path(block)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(record, path)
        self._count(block, path)
        return True

    def adopt(self, block: int, file: Path) -> None:
        """Take over a file that another store wrote, without copying it where that is possible."""
        path = self.path(block)
        path.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(file, path)
        self._count(block, path)

    def record(self, block: int) -> Tensor:
        """Read a block's record (L, R)."""
        found: Tensor = self._handle(block).get_tensor("kv")
        return found

    def read(self, block: int, layer: int) -> Tensor:
        """Read one layer (R,) of a block."""
        found: Tensor = self._handle(block).get_slice("kv")[layer]
        return found

    def remove(self, block: int) -> None:
        """Delete a block's file."""
        self._open.pop(block, None)
        self._used -= self._sizes.pop(block)
        self.path(block).unlink()

    def clear(self) -> None:
        """Delete all files."""
        self.done_reading()
        self._sizes.clear()
        self._used = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def done_reading(self) -> None:
        """Close the mapped files, whose pages count as this process's memory while open."""
        self._open.clear()

    def path(self, block: int) -> Path:
        """Return where a block's file is."""
        if self._folder is None:
            if self._root is not None:
                self._root.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="blocks-", dir=self._root))
        return self._folder / f"{block // _PER_FOLDER:05d}" / f"{block:09d}.safetensors"

    def _count(self, block: int, path: Path) -> None:
        self._sizes[block] = path.stat().st_size
        self._used += self._sizes[block]

    def _handle(self, block: int) -> Any:
        if block in self._open:
            self._open.move_to_end(block)
            return self._open[block]
        handle: Any = safe_open(self.path(block), framework="pt")
        self._open[block] = handle
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)
        return handle


def write_record(record: Tensor, path: Path) -> None:
    """Write a record as a file of its own."""
    # A copy, because safetensors takes no views of a larger piece of memory.
    save_file({"kv": record.cpu().clone()}, path)


def read_record(record: Tensor | Path) -> Tensor:
    """Return a record that may be in a file."""
    return record if isinstance(record, Tensor) else load_file(record)["kv"]


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; copy it where the file system cannot do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _header_bytes(record: Tensor) -> int:
    """Upper bound of what safetensors writes in front of a record."""
    return 128 + len(str(record.nbytes)) + sum(len(str(size)) for size in record.shape)
