# SPDX-License-Identifier: Apache-2.0
"""Answers as they come: a list of entries, and the file with a line of JSON for each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from stc_video.evaluation.queries import DataError
from stc_video.folder_lock import try_lock


class Answers:
    """Collects what comes.

    Parameters
    ----------
    answered
        What needs no answer any more.

    Attributes
    ----------
    answered
        (configuration, question) of all answers so far.
    entries
        What came, in its order; a file has them itself.
    """

    def __init__(self, answered: Iterable[tuple[str, str]] = ()) -> None:
        self.answered = set(answered)
        self.entries: list[dict[str, Any]] = []

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take an entry that another one collected.

        Raises
        ------
        ValueError
            If it is an answer that is there already.
        """
        if entry["kind"] == "answer":
            name = (entry["configuration"], entry["key"])
            if name in self.answered:
                raise ValueError(f"{name[1]} has an answer by {name[0]} already")
            self._write(entry)
            self.answered.add(name)
        else:
            self._write(entry)

    def answer(self, configuration: str, key: str, **facts: Any) -> None:
        """Take an answer."""
        self.add({"kind": "answer", "configuration": configuration, "key": key, **facts})

    def video_done(self, configuration: str, video: str, **facts: Any) -> None:
        """Take what a video cost."""
        self.add({"kind": "pass", "configuration": configuration, "video": video, **facts})

    def sync(self) -> None:
        """Make sure that nothing is lost from here on."""

    def _write(self, entry: Mapping[str, Any]) -> None:
        self.entries.append(dict(entry))


class AnswerFile(Answers):
    """Appends to a file of answers; one process at a time.

    The first line is the protocol. A line is written whole or, if the process is killed, is cut off
    at the next opening, and what it was about is done again.

    Parameters
    ----------
    path
        The file.
    protocol
        What the answers depend on.
    resume
        Go on with a file that is there.

    Raises
    ------
    ValueError
        If the file is there and must not be, or was written under another protocol or by a
        process that still runs.
    """

    def __init__(self, path: Path, protocol: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        protocol = json.loads(json.dumps(protocol))
        if path.exists() and not resume:
            raise ValueError(
                f"{path} is there already: --resume goes on, another --out starts anew"
            )
        descriptor = try_lock(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        if descriptor is None:
            raise ValueError(f"{path} is being written by another process")
        self._file = os.fdopen(descriptor, "ab")
        try:
            _cut_torn_line(path)
            found, entries = read_answers(path)
            if found is not None:
                _check_same(path, found, protocol)
            else:
                self._write({"protocol": protocol})
        except BaseException:
            self._file.close()
            raise
        super().__init__(
            (entry["configuration"], entry["key"]) for entry in entries
            if entry["kind"] == "answer"
        )  # fmt: skip

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _write(self, entry: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


def _cut_torn_line(path: Path) -> None:
    """Take off what was being written when the process was killed."""
    with path.open("r+b") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)


def read_answers(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the protocol and the entries of a file of answers; a torn last line is left out.

    Raises
    ------
    DataError
        If a line before the last is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise DataError(f"{path}: line {number} is damaged: {error}") from error
    if not entries:
        return None, []
    if "protocol" not in entries[0]:
        raise DataError(f"{path}: the first line must be the protocol; this is another file")
    return entries[0]["protocol"], entries[1:]


def _check_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [name for name in _names(found, wanted) if found.get(name) != wanted.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path} was begun with another {', '.join(different)}: {found.get(name)!r} there, "
            f"{wanted.get(name)!r} now"
        )


def _names(*protocols: Mapping[str, Any]) -> Iterable[str]:
    return dict.fromkeys(name for protocol in protocols for name in protocol)
