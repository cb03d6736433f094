# SPDX-License-Identifier: Apache-2.0
"""Pictures and messages for the service."""

from __future__ import annotations

import io
import json
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def jpeg(seed: int = 0, size: tuple[int, int] = (64, 48), kind: str = "JPEG") -> bytes:
    """A picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A small PNG file of a huge black picture."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * (1 + width // 8) * 100)
    chunks = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    made = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        made += struct.pack(">I", len(data)) + name + data
        made += struct.pack(">I", zlib.crc32(name + data))
    return made


def question(text: str = "what is on the table?", **rest: object) -> dict[str, Any]:
    """A request for a short answer."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 6, **rest}


def push(socket: Any, data: bytes, timestamp: float | None = None) -> None:
    """Send a frame through a test client's WebSocket."""
    if timestamp is not None:
        socket.send_text(json.dumps({"timestamp": timestamp}))
    socket.send_bytes(data)


def events(text: str) -> list[Any]:
    """Values of server-sent events; the end as text."""
    found = [part.removeprefix("data: ") for part in text.split("\n\n") if part.startswith("data")]
    return [part if part == "[DONE]" else json.loads(part) for part in found]
