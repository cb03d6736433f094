# SPDX-License-Identifier: Apache-2.0
"""A saved session: one folder that is always whole, and is recognised when it is not.

``session.json`` names the folder ``data-*`` that belongs to it, with size and checksum of each file
in it, and has a checksum of its own. A save writes a new such folder and then replaces
``session.json``, in one step; only then is the old data removed. A process that is killed at any
moment leaves either the old save or the new one. A frame that the old save of the same stream has
already is neither written nor read again; the new folder gets a second name of its file.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import zlib
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from stc_kernels import __version__
from stc_video.errors import DamagedSaveError
from stc_video.memory.base import Snapshot
from stc_video.memory.stores import StoredFile, sync, write_new, write_record

FORMAT = 3
INDEX = "session.json"
_TENSORS, _DATA = "tensors.safetensors", "data-"
_OWN = frozenset({"format", "version", "stream", "data", "files"})
#: neither has checksums; 1 differs from 2 in the names of classes
_UNCHECKED = (1, 2)
_OWN_UNCHECKED = frozenset({"format", "stream", "data", "records"})


def write_save(folder: Path, snapshot: Snapshot, stream: str) -> None:
    """Write a snapshot in place of the one that the folder may hold.

    Parameters
    ----------
    folder
        Made if it is not there; other files in it stay. One process at a time may write to it.
    snapshot
        What to write.
    stream
        Identifies the stream: two saves with the same one have the same record for a number.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = folder / f"{_DATA}{uuid.uuid4().hex}"
    data.mkdir(mode=0o700)
    try:
        files = _write_data(data, snapshot, _records_before(folder, stream))
        values = {
            "format": FORMAT,
            "version": __version__,
            "stream": stream,
            "data": data.name,
            "files": {file.path.name: [file.size, file.checksum] for file in files},
            **snapshot.values,
        }
        index = json.dumps({"checksum": _checksum(values), **values}, allow_nan=False)
        write_new(index.encode(), data / INDEX)
        sync(data / INDEX)
        sync(data)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    os.replace(data / INDEX, folder / INDEX)
    sync(folder)
    remove_left_behind(folder, data.name)


def read_save(folder: Path) -> Snapshot:
    """Read what `write_save` wrote, every byte of it.

    Raises
    ------
    FileNotFoundError
        If there is no save in the folder.
    DamagedSaveError
        If a file is not what was written.
    ValueError
        If it is of a later version.
    """
    values = _read_index(folder)
    data = folder / values["data"]
    missing = [name for name in values["files"] if not (data / name).is_file()]
    if missing:
        raise _damaged(folder, f"{len(missing)} files are missing, among them {missing[0]}")
    files: dict[str, StoredFile] = {}
    for name, written in values["files"].items():
        file = files[name] = StoredFile.read(data / name)
        if written is None:
            _check_by_its_header(folder, file)
        elif [file.size, file.checksum] != written:
            raise _damaged(
                folder,
                f"{values['data']}/{name} has {file.size} bytes with the checksum "
                f"{file.checksum:08x}, {written[0]} with {written[1]:08x} were written",
            )
    tensors = load_file(files.pop(_TENSORS).path)
    own = _OWN | _OWN_UNCHECKED
    rest = {name: value for name, value in values.items() if name not in own}
    return Snapshot(rest, tensors, {int(Path(n).stem): file for n, file in files.items()})


def delete_save(folder: Path) -> None:
    """Delete a save, so that no kill at any moment leaves a part of it that looks like one.

    Raises
    ------
    OSError
        If something of it cannot be deleted.
    """
    if folder.is_dir():
        (folder / INDEX).unlink(missing_ok=True)
        sync(folder)
        shutil.rmtree(folder)


def remove_left_behind(folder: Path, data: str | None = None) -> None:
    """Delete what killed saves left in a folder that nobody writes to: all data but one."""
    if data is None and (folder / INDEX).exists():
        data = _read_index(folder)["data"]
    for old in folder.glob(f"{_DATA}*"):
        if old.name != data:
            shutil.rmtree(old, ignore_errors=True)


def _write_data(data: Path, snapshot: Snapshot, before: dict[int, StoredFile]) -> list[StoredFile]:
    """Write, or link, all files of a snapshot and wait until they are on the disk."""
    path = data / _TENSORS
    save_file({name: t.detach().cpu().clone() for name, t in snapshot.tensors.items()}, path)
    path.chmod(0o600)
    sync(path)
    files = [StoredFile.read(path)]
    for number, record in snapshot.records.items():
        path = data / _file_of(number)
        if number in before:
            files.append(before[number].link(path))
            continue
        if isinstance(record, StoredFile):
            files.append(record.link(path))
        else:
            files.append(write_record(record, path))
        sync(path)
    return files


def _read_index(folder: Path) -> dict[str, Any]:
    """Read ``session.json``; ``files`` has sizes and checksums, or None in old formats."""
    path = folder / INDEX
    if not path.is_file():
        raise FileNotFoundError(f"load: there is no saved session in {folder}")
    try:
        values: Any = json.loads(path.read_bytes(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{INDEX} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise _damaged(folder, f"{INDEX} must be an object, got {type(values).__name__}")
    # First of all, and in later formats as well: it tells another version from a damage.
    written, own = values.pop("checksum", None), _OWN
    if written is not None and written != _checksum(values):
        raise _damaged(folder, f"{INDEX} is not what was written: its checksum differs")
    if (found := values.get("format")) in _UNCHECKED and written is None:
        own = _OWN_UNCHECKED
    elif found != FORMAT:
        raise ValueError(
            f"load: {path} must be of format {FORMAT} or older, got {found!r}; it was saved by "
            "another version"
        )
    elif written is None:
        raise _damaged(folder, f"{INDEX} has no checksum")
    if own - values.keys():
        raise _damaged(folder, f"{INDEX} has no {', '.join(sorted(own - values.keys()))}")
    if own is _OWN_UNCHECKED:
        names = [_TENSORS, *map(_file_of, _numbers(folder, values["records"]))]
        values["files"] = dict.fromkeys(names)
    if not re.fullmatch(f"{_DATA}[0-9a-f]+", str(values["data"])):
        raise _damaged(folder, f"{INDEX} has the data folder {values['data']!r}")
    return values


def _records_before(folder: Path, stream: str) -> dict[int, StoredFile]:
    """Files of the records in the save that is there, if it is of this stream."""
    try:
        values = _read_index(folder)
    except (OSError, ValueError):
        return {}
    if values["format"] != FORMAT or values["stream"] != stream:
        return {}
    data, found = folder / values["data"], {}
    for name, (size, checksum) in values["files"].items():
        path = data / name
        # What was cut off is written again; more is not looked at, to be quick.
        if name != _TENSORS and path.is_file() and path.stat().st_size == size:
            found[int(path.stem)] = StoredFile(path, size, checksum)
    return found


def _check_by_its_header(folder: Path, file: StoredFile) -> None:
    """Look at a file without a checksum: whether its length is as its header says."""
    try:
        with safe_open(file.path, framework="pt") as opened:
            names = list(opened.keys())
    except SafetensorError as error:
        raise _damaged(folder, f"{file.path.name}: {error}") from error
    if file.path.name != _TENSORS and names != ["kv"]:
        raise _damaged(folder, f"{file.path.name} must have kv, got {', '.join(names)}")


def _numbers(folder: Path, found: Any) -> list[int]:
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise _damaged(folder, f"{INDEX}: records must be a list of numbers from 0")
    return found


def _checksum(values: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(values, allow_nan=False).encode())


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _damaged(folder: Path, what: str) -> DamagedSaveError:
    return DamagedSaveError(f"load: the save in {folder} is damaged: {what}")


def _file_of(number: int) -> str:
    return f"{number:09d}.safetensors"
