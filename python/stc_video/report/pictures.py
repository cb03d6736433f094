# SPDX-License-Identifier: Apache-2.0
"""Pictures inside a report."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def webp(picture: Image, side: int = 448, quality: int = 80) -> bytes:
    """Encode a picture as WebP, at most `side` pixels wide and high."""
    small = picture.copy()
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def data_url(picture: bytes) -> str | None:
    """Return what an <img> loads without a file; None if there is no picture."""
    if not picture:
        return None
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"
