# SPDX-License-Identifier: Apache-2.0
"""Files that are written once, known by their size and checksum, and linked instead of copied.

The checksum is CRC-32, the fastest of the standard library. It finds every flipped bit, every
damaged stretch of up to 32 bits, and all but one in four thousand million of other accidents; it
is no protection from somebody who changes a file on purpose.
"""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save
from torch import Tensor

_PIECE = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    """A file as it was written.

    Attributes
    ----------
    path
        Where it is.
    size
        Its bytes.
    checksum
        CRC-32 of them.
    """

    path: Path
    size: int
    checksum: int

    @classmethod
    def read(cls, path: Path) -> StoredFile:
        """Describe a file that is there, from its first to its last byte."""
        size = checksum = 0
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                size += len(piece)
                checksum = zlib.crc32(piece, checksum)
        return cls(path, size, checksum)

    def link(self, target: Path) -> StoredFile:
        """Give it a second name; copy it where the file system cannot do that."""
        try:
            os.link(self.path, target)
        except OSError:
            shutil.copyfile(self.path, target)
            target.chmod(0o600)
            sync(target)
        return StoredFile(target, self.size, self.checksum)

    @property
    def bytes_on_disk(self) -> int:
        """Its size in whole blocks of the file system."""
        found = self.path.stat()
        return max(found.st_size, 512 * found.st_blocks)


def write_record(record: Tensor, path: Path) -> StoredFile:
    """Write a record as a file of its own."""
    # A copy, because safetensors takes no views of a larger piece of memory.
    content = save({"kv": record.cpu().clone()})
    write_new(content, path)
    return StoredFile(path, len(content), zlib.crc32(content))


def read_record(record: Tensor | StoredFile) -> Tensor:
    """Return a record that may be in a file."""
    return record if isinstance(record, Tensor) else load_file(record.path)["kv"]


def write_new(content: bytes, path: Path) -> None:
    """Write a file for its owner's eyes only, whole or not at all."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
    except BaseException:
        path.unlink()
        raise


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
