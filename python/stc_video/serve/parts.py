# SPDX-License-Identifier: Apache-2.0
"""Which of several replicas a stream belongs to: it follows from its name."""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from stc_video.errors import FolderInUseError
from stc_video.folder_lock import FolderLock

_STREAM_PATH = re.compile(r"/v1/streams/([^/]+)")


@dataclass(frozen=True)
class Part:
    """One of ``count`` parts of all streams, by numbers from 0."""

    number: int
    count: int

    def has(self, name: str) -> bool:
        """Whether a stream belongs here."""
        return part_of(name, self.count) == self.number


def part_of(name: str, count: int) -> int:
    """Number of the part that a stream belongs to, the same in every process."""
    return zlib.crc32(name.encode()) % count


def stream_in(path: str) -> str | None:
    """Name of the stream that a path is about; None if it is about none."""
    found = _STREAM_PATH.match(path)
    return None if found is None else found[1]


def take_part(folder: Path, count: int, seconds: float) -> tuple[Part, FolderLock]:
    """Take the first part that nobody has, until the process ends.

    Parameters
    ----------
    folder
        Where the streams of all parts are saved; every process must see the same.
    count
        How many parts there are.
    seconds
        How long to wait for one; a process that is being killed may still have it.

    Raises
    ------
    FolderInUseError
        If all are taken.
    """
    end = time.monotonic() + seconds
    while True:
        for number in range(count):
            try:
                # No stream has a name that begins with a point.
                return Part(number, count), FolderLock(folder / f".part-{number}")
            except FolderInUseError:
                continue
        if time.monotonic() > end:
            raise FolderInUseError(f"serve: all {count} parts of {folder} are taken")
        time.sleep(0.2)
