# SPDX-License-Identifier: Apache-2.0
"""Folders that have one owner at a time; a process that ends, however it ends, owns none."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from stc_video.errors import FolderInUseError

_FILE = ".lock"


class FolderLock:
    """The right to write to a folder, until it is released or the process ends.

    Parameters
    ----------
    folder
        Made, for its owner's eyes only, if it is not there.

    Raises
    ------
    FolderInUseError
        If another process, or another owner in this one, has it.

    Attributes
    ----------
    folder
        The folder.
    release
        Call it to give the folder back; a second call does nothing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        descriptor = try_lock(folder / _FILE, os.O_RDWR | os.O_CREAT)
        if descriptor is None:
            raise FolderInUseError(f"save: {folder} is written to by {_owner(folder / _FILE)}")
        self.release = weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor

    def is_on(self, folder: Path) -> bool:
        """Tell whether this is the lock of a folder, which may have been deleted and made again."""
        return folder == self.folder and _is_at(self._descriptor, folder / _FILE)


def try_lock(path: Path, flags: int = os.O_RDONLY) -> int | None:
    """Lock a file or a folder.

    Returns
    -------
    int or None
        An open file, whose end is the end of the lock; None if somebody else has it.
    """
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it before may have deleted it in between.
            if _is_at(descriptor, path):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _owner(file: Path) -> str:
    """Who has a lock, in words."""
    try:
        number = int(file.read_text())
    except (OSError, ValueError):  # it has just been taken, or has just been deleted
        return "another process"
    if number == os.getpid():
        return f"another session of this process ({number}), which must be closed first"
    return f"process {number}"
