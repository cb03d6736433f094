# SPDX-License-Identifier: Apache-2.0
"""JPEG and PNG files without everything that a decoder could be kept busy with.

A file from the network is read by hand, with bounds: its size in pixels, and where its parts lie.
What makes the picture is copied, and the decoder gets to see nothing else: no texts to unpack, no
colour profiles, no further pictures. Of the Exif data only the orientation is taken, as the entries
of a small file may stand for gigabytes.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS, _MOST_SEGMENTS, _MOST_ENTRIES = 10_000, 1_000, 200
# Each scan of a progressive JPEG is a pass over the whole picture; encoders make about ten.
_MOST_SCANS = 64
# In the data of a scan, a byte 0xff is followed by a zero or is a restart marker.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TABLES = {0xC4, 0xCC, 0xDB, 0xDD}
_SCAN, _END, _JFIF, _EXIF, _ADOBE = 0xDA, 0xD9, 0xE0, 0xE1, 0xEE
_ORIENTATION, _SHORT = 0x0112, 3


class PictureError(ValueError):
    """Bytes that are no picture, or one that is too large; nothing of it was kept."""


def plain_file(data: bytes, max_pixels: int) -> bytes:
    """Return what makes the picture of a file.

    Parameters
    ----------
    data
        A JPEG or PNG.
    max_pixels
        Largest width times height.

    Raises
    ------
    PictureError
        If it is neither, too large, or has too many parts.
    """
    if data.startswith(_JPEG):
        return _plain_jpeg(data, max_pixels)
    if data.startswith(_PNG):
        return _plain_png(data, max_pixels)
    raise PictureError(f"a frame must be a JPEG or PNG, got {len(data)} other bytes")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise PictureError(f"a frame must have at most {max_pixels} pixels, got {width} x {height}")
    if not width * height:
        raise PictureError(f"the picture is damaged (a size of {width} x {height})")


# -- PNG -------------------------------------------------------------------------------------------


def _plain_png(data: bytes, max_pixels: int) -> bytes:
    kept, turned = [_PNG], 1
    for number, (kind, first, last) in enumerate(_chunks(data)):
        if number == 0:
            if kind != b"IHDR" or min(last, len(data)) - first < 25:
                raise PictureError("the picture is damaged (it does not begin with its size)")
            width, height = struct.unpack_from(">II", data, first + 8)
            _check_size(width, height, max_pixels)
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            if kind == b"IEND" and turned != 1:
                chunk = b"eXIf" + _tiff(turned)
                kept.append(struct.pack(">I", len(chunk) - 4) + chunk)
                kept.append(struct.pack(">I", zlib.crc32(chunk)))
            kept.append(data[first:last])
        elif kind == b"eXIf":
            turned = _orientation(data[first + 8 : last - 4])
    return b"".join(kept)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, begin and end of each chunk; the last one may be cut off."""
    first = len(_PNG)
    for _ in range(_MOST_CHUNKS):
        if first + 8 > len(data):
            return
        size, kind = struct.unpack_from(">I4s", data, first)
        yield kind, first, first + 12 + size
        if kind == b"IEND":
            return
        first += 12 + size
    raise PictureError(f"a PNG must have at most {_MOST_CHUNKS} chunks")


# -- JPEG ------------------------------------------------------------------------------------------


def _plain_jpeg(data: bytes, max_pixels: int) -> bytes:
    kept: list[bytes] = []
    frames, scans, turned = 0, 0, 1
    for marker, first, last in _segments(data):
        body = data[first + 4 : last] if marker in (_JFIF, _EXIF, _ADOBE) else b""
        if marker in _FRAMES:
            frames += 1
            if frames > 1 or min(last, len(data)) - first < 9:
                raise PictureError("the picture is damaged (a JPEG must have one size)")
            height, width = struct.unpack_from(">HH", data, first + 5)
            _check_size(width, height, max_pixels)
        scans += marker == _SCAN
        if scans > _MOST_SCANS:
            raise PictureError(f"a JPEG must have at most {_MOST_SCANS} scans")
        if body.startswith(b"Exif\0\0"):
            turned = _orientation(body[6:])
        is_needed = marker in _TABLES or marker in _FRAMES or marker in (_SCAN, _END)
        # These two say what the numbers of the components mean.
        if is_needed or body.startswith((b"JFIF\0", b"Adobe")):
            kept.append(data[first:last])
    if not frames:
        raise PictureError("the picture is damaged (it has no size)")
    exif = b"Exif\0\0" + _tiff(turned)
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return b"".join([data[:2], segment if turned != 1 else b"", *kept])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment, the data of a scan included."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        first, marker = found.start(), data[found.start() + 1]
        if marker == _END:
            yield marker, first, first + 2
            return
        if first + 4 > len(data):
            return
        last = first + 2 + struct.unpack_from(">H", data, first + 2)[0]
        if marker == _SCAN:
            following = _MARKER.search(data, last)
            last = len(data) if following is None else following.start()
        yield marker, first, last
        at = last
    raise PictureError(f"a JPEG must have at most {_MOST_SEGMENTS} segments")


# -- Exif ------------------------------------------------------------------------------------------


def _orientation(tiff: bytes) -> int:
    """Orientation of a picture, 1 to 8; 1 if that is not said."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None or len(tiff) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for number in range(min(count, _MOST_ENTRIES)):
        entry = tiff[start + 2 + 12 * number :][:12]
        if len(entry) == 12:
            tag, kind, _, value = struct.unpack(order + "HHIH", entry[:10])
            if (tag, kind) == (_ORIENTATION, _SHORT):
                return int(value) if 1 <= value <= 8 else 1
    return 1


def _tiff(turned: int) -> bytes:
    """Exif data that say how a picture is turned and nothing else."""
    entry = struct.pack("<HHIHH", _ORIENTATION, _SHORT, 1, turned, 0)
    return b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0"
