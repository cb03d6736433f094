# SPDX-License-Identifier: Apache-2.0
"""A saved session: one folder that is always whole.

``session.json`` names the folder ``data-*`` that belongs to it. A save writes a new such folder
and then replaces ``session.json``, in one step; only then is the old data removed. A process that
is killed at any moment leaves either the old save or the new one. A frame that the old save of the
same stream has already is not written again; the new folder gets a second name of its file.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from stc_video.memory.base import Snapshot
from stc_video.memory.stores import link_or_copy, write_record

__all__ = ["read_save", "write_save"]

FORMAT = 2
#: 1 differs in the names of classes only
_READABLE = (1, 2)
_INDEX, _TENSORS, _DATA = "session.json", "tensors.safetensors", "data-"


def write_save(folder: Path, snapshot: Snapshot, stream: str) -> None:
    """Write a snapshot in place of the one that the folder may hold.

    Parameters
    ----------
    folder
        Made if it is not there; other files in it stay.
    snapshot
        What to write.
    stream
        Identifies the stream: two saves with the same one have the same record for a number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{_DATA}{uuid.uuid4().hex}"
    data.mkdir()
    try:
        written = {name: tensor.detach().cpu().clone() for name, tensor in snapshot.tensors.items()}
        save_file(written, data / _TENSORS)
        del written
        before = _records_before(folder, stream)
        for number, record in snapshot.records.items():
            path = data / _file_of(number)
            if number in before:
                link_or_copy(before[number], path)
            elif isinstance(record, Tensor):
                write_record(record, path)
            else:
                link_or_copy(record, path)
        for path in [*data.iterdir(), data]:
            _sync(path)
        index = {
            "format": FORMAT,
            "stream": stream,
            "data": data.name,
            "records": list(snapshot.records),
            **snapshot.values,
        }
        temporary = data / _INDEX
        temporary.write_text(json.dumps(index))
        _sync(temporary)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    os.replace(temporary, folder / _INDEX)
    _sync(folder)
    for old in folder.glob(f"{_DATA}*"):
        if old != data:
            shutil.rmtree(old, ignore_errors=True)


def read_save(folder: Path) -> Snapshot:
    """Read what `write_save` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no save in the folder.
    ValueError
        If it is of another version, or damaged.
    """
    index = folder / _INDEX
    if not index.is_file():
        raise FileNotFoundError(f"load: there is no saved session in {folder}")
    try:
        values: dict[str, Any] = json.loads(index.read_text())
    except ValueError as error:
        raise ValueError(f"load: {index} is damaged: {error}") from error
    if values.get("format") not in _READABLE:
        raise ValueError(
            f"load: {index} must be of format {FORMAT} or older, got {values.get('format')!r}; "
            "it was saved by another version"
        )
    values.pop("stream", None)  # whoever goes on is a stream of its own
    data = folder / values.pop("data")
    records = {n: data / _file_of(n) for n in values.pop("records")}
    missing = [path for path in [data / _TENSORS, *records.values()] if not path.is_file()]
    if missing:
        raise ValueError(f"load: {len(missing)} files are missing, among them {missing[0]}")
    return Snapshot(values, load_file(data / _TENSORS), dict(records))


def _records_before(folder: Path, stream: str) -> dict[int, Path]:
    """Files of the records in the save that is there, if it is of this stream."""
    try:
        values = json.loads((folder / _INDEX).read_text())
    except (OSError, ValueError):
        return {}
    if values.get("format") not in _READABLE or values.get("stream") != stream:
        return {}
    files = {n: folder / values["data"] / _file_of(n) for n in values["records"]}
    return {number: path for number, path in files.items() if path.is_file()}


def _file_of(number: int) -> str:
    return f"{number:09d}.safetensors"


def _sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
