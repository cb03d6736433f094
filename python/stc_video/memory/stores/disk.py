# SPDX-License-Identifier: Apache-2.0
"""Blocks as memory-mapped safetensors files."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from stc_video.errors import MemoryFullError
from stc_video.folder_lock import try_lock
from stc_video.memory.stores.files import StoredFile, write_record

_PREFIX = "stc-blocks-"
_PER_FOLDER = 1000
_OPEN_FILES = 64
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskStore:
    """Keeps one file per block. Files are never changed, so that a save can link to them.

    Parameters
    ----------
    folder
        Where to make a folder for the files, which :meth:`clear` removes; None for the system's
        temporary one. What killed processes left there is removed.
    budget
        Most bytes of all files together, each in whole blocks of the file system.
    """

    name = "disk"

    def __init__(self, folder: str | Path | None, budget: int) -> None:
        self.budget = budget
        self._root = Path(tempfile.gettempdir()) if folder is None else Path(folder)
        # A folder of its own, so that two streams, or a killed process, never mix up files.
        self._folder: Path | None = None
        self._lock: int | None = None
        self._files: dict[int, StoredFile] = {}
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
        """Write a record (L, R) uint8; False if the budget has no room for it.

        Raises
        ------
        MemoryFullError
            If the disk is full. To forget blocks would make no room where a save has their files.
        """
        try:
            path = self._place(block)
            if self._used + _upper_bound(record, path.parent) > self.budget:
                return False
            self._count(block, write_record(record, path))
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise MemoryFullError(
                f"memory: {self._root} has no room for a block of {record.nbytes} bytes "
                f"({error.strerror}), with {self._used} of disk_bytes={self.budget} used"
            ) from error
        return True

    def adopt(self, block: int, file: StoredFile) -> None:
        """Take over a file that another store wrote, without copying it where that is possible."""
        self._count(block, file.link(self._place(block)))

    def file(self, block: int) -> StoredFile:
        """Return a block's file."""
        return self._files[block]

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
        self._files.pop(block).path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete all files."""
        self.done_reading()
        self._files.clear()
        self._sizes.clear()
        self._used = 0
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def done_reading(self) -> None:
        """Close the mapped files, whose pages count as this process's memory while open."""
        self._open.clear()

    def _place(self, block: int) -> Path:
        """Path of a block's file, in a folder that is there."""
        if self._folder is None:
            self._make_folder()
        assert self._folder is not None
        folder = self._folder / f"{block // _PER_FOLDER:05d}"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / f"{block:09d}.safetensors"

    def _make_folder(self) -> None:
        """Make the folder and lock it, by which others see that it is in use."""
        self._root.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(self._root)
        while self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=self._root))
            try:
                self._lock = try_lock(folder)
            except FileNotFoundError:
                continue
            except OSError:  # no locks on this file system: nobody can take it for left behind
                self._folder = folder
                return
            if self._lock is not None:  # otherwise somebody was faster and removes it
                self._folder = folder

    def _count(self, block: int, file: StoredFile) -> None:
        self._files[block] = file
        self._sizes[block] = file.bytes_on_disk
        self._used += self._sizes[block]

    def _handle(self, block: int) -> Any:
        if block in self._open:
            self._open.move_to_end(block)
            return self._open[block]
        handle: Any = safe_open(self._files[block].path, framework="pt")
        self._open[block] = handle
        if len(self._open) > _OPEN_FILES:
            self._open.popitem(last=False)
        return handle


def _remove_left_behind(root: Path) -> None:
    """Delete the folders of processes that were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or without locks
            lock = try_lock(folder, os.O_RDONLY | os.O_DIRECTORY)
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                os.close(lock)


def _upper_bound(record: Tensor, folder: Path) -> int:
    """Most bytes that the file of a record will take up."""
    # What safetensors writes in front of a record.
    header = 128 + len(str(record.nbytes)) + sum(len(str(size)) for size in record.shape)
    block = os.statvfs(folder).f_frsize
    return -(-(record.nbytes + header) // block) * block
