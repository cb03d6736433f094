# SPDX-License-Identifier: Apache-2.0
"""Locations of videos: a file, a camera of this machine, or an address."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

from stc_video.addresses import without_password
from stc_video.video.errors import VideoError

# Two letters or more: C:\clips is a folder.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_CAMERA = re.compile(r"/dev/video\d+")
# What pathlib makes of an address: it takes the second slash for one too many.
_MERGED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")


@dataclass(frozen=True)
class Location:
    """Location of a video.

    Attributes
    ----------
    url
        What FFmpeg opens.
    shown
        The same for people, without a password.
    name
        A short name.
    path
        Of a file; None for a camera or an address.
    format, options
        What FFmpeg must be told besides.
    """

    url: str
    shown: str
    name: str
    path: Path | None = None
    format: str | None = None
    options: dict[str, str] = field(default_factory=dict)


def locate(source: str | os.PathLike[str]) -> Location:
    """Find out what a source is.

    Parameters
    ----------
    source
        A file's name, whatever characters it has, also as ``file:NAME`` or ``file:///NAME``; a
        camera such as ``/dev/video0``; or an address such as ``rtsp://...`` or ``http://...``. What
        exists as a file is one.

    Raises
    ------
    VideoError
        If an address was made a path, which loses one of its slashes.
    """
    text = os.fspath(source)
    if is_camera(text):
        return Location(text, text, text.rpartition("/")[2], format="v4l2")
    path = Path(text)
    if not os.path.exists(path):
        if not isinstance(source, str) and _MERGED.match(text):
            raise VideoError(f"{text}: give an address as a text, a path merges its slashes")
        scheme = _SCHEME.match(text)
        if scheme and scheme[1].lower() != "file":
            return _address(text, scheme[1].lower())
        if text.startswith("file:"):
            path = Path(unquote(urlsplit(text).path) if scheme else text.removeprefix("file:"))
    # With the prefix and from the root, no character of the name means anything to FFmpeg.
    return Location(f"file:{path.absolute()}", str(path), path.name, path)


def is_camera(source: str | os.PathLike[str]) -> bool:
    """Tell whether a source is a camera of this machine."""
    return _CAMERA.fullmatch(os.fspath(source)) is not None


def _address(url: str, scheme: str) -> Location:
    # Over TCP nothing is lost on the way; cameras that cannot are asked in the usual order.
    options = {"rtsp_flags": "prefer_tcp"} if scheme.startswith("rtsp") else {}
    shown = without_password(url)
    parts = urlsplit(shown)
    name = parts.path.rstrip("/").rpartition("/")[2]
    return Location(url.replace(" ", "%20"), shown, name or parts.netloc, options=options)
