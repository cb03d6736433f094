# SPDX-License-Identifier: Apache-2.0
"""Names of streams, as clients give them and as they travel to the worker.

A client names the stream of a request's pictures and videos in ``mm_processor_kwargs``, which a
server may refuse, or in the ``uuid`` of each of them. The worker gets no text but the fields of
each item, so there the name is three numbers: a digest of 128 bits, and whether the stream ends
with the request.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: fields of ``mm_processor_kwargs``
STREAM, END = "stc_stream", "stc_end"
#: a ``uuid`` that names a stream
_UUID = re.compile(f"(?P<field>{STREAM}|{END}):(?P<name>.*)/[^/]+", re.DOTALL)
#: characters that a name may have
LONGEST = 256


@dataclass(frozen=True)
class StreamName:
    """Who the frames of an item belong to.

    Attributes
    ----------
    key
        Digest of the name, 32 hexadecimal digits, and behind a slash the number of a view that is
        not the whole picture; empty for an item without a name.
    is_last
        Whether the stream ends with this request.
    """

    key: str = ""
    is_last: bool = False

    @classmethod
    def taken_from(cls, options: Mapping[str, object]) -> tuple[StreamName, dict[str, object]]:
        """Return the name in a request's ``mm_processor_kwargs``, and the others of these.

        Raises
        ------
        ValueError
            If the name is no text of 1 to 256 characters, or ``stc_end`` comes without a name or
            is not true or false.
        """
        rest = dict(options)
        name, end = rest.pop(STREAM, None), rest.pop(END, False)
        if not isinstance(end, bool):
            raise ValueError(f"{END}: must be true or false, got {str(end)[:40]!r}")
        if name is None:
            if end:
                raise ValueError(f"{END}: needs the name of the stream in {STREAM}, got none")
            return NAMELESS, rest
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST:
            got = f"{len(name)} characters" if isinstance(name, str) else type(name).__name__
            raise ValueError(f"{STREAM}: must be a text of 1 to {LONGEST} characters, got {got}")
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16)
        return cls(digest.hexdigest(), end), rest

    @classmethod
    def from_uuids(cls, uuids: Iterable[object]) -> StreamName:
        """Return the name in the ``uuid`` of each picture and video of a request, if it is there.

        Raises
        ------
        ValueError
            If they are not all of one stream, or the name is none as above.
        """
        given = [str(uuid) for uuid in uuids]
        if not any(uuid.startswith((f"{STREAM}:", f"{END}:")) for uuid in given):
            return NAMELESS
        found = {match and match.group("field", "name") for match in map(_UUID.fullmatch, given)}
        stream = found.pop()
        if found or stream is None:
            raise ValueError(
                f"{STREAM}: the uuids of all pictures and videos of a request must be "
                f"'{STREAM}:', the name of one stream, '/' and what no other frame has, "
                f"got {given[0][:40]!r} to {given[-1][:40]!r}"
            )
        field, name = stream
        return cls.taken_from({STREAM: name, END: field == END})[0]

    def of_view(self, number: int) -> StreamName:
        """Name one of the views that a picture is cut into; the first is the whole picture."""
        return replace(self, key=f"{self.key}/{number}") if self.key and number else self

    @property
    def stream(self) -> str:
        """The key of the whole picture."""
        return stream_of(self.key)

    def numbers(self) -> list[int]:
        """Return the name as three int64 numbers; zeros for no name."""
        digest = bytes.fromhex(self.key or "00" * 16)
        halves = (int.from_bytes(digest[at : at + 8], "big", signed=True) for at in (0, 8))
        return [*halves, int(self.is_last)]

    @classmethod
    def from_numbers(cls, numbers: Tensor) -> list[StreamName]:
        """Read the names of the items of a call, (items, 3) int64."""
        names = []
        for first, second, end in numbers.tolist():
            halves = (half.to_bytes(8, "big", signed=True) for half in (first, second))
            key = b"".join(halves).hex() if first or second else ""
            names.append(cls(key, bool(end)))
        return names

    def repeated(self, items: int) -> Tensor:
        """Return the numbers once for each item, (items, 3) int64."""
        return torch.tensor(self.numbers()).repeat(items, 1)


def stream_of(key: str) -> str:
    """Key of the whole picture, of which a key names a view."""
    return key.partition("/")[0]


NAMELESS = StreamName()
