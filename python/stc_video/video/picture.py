# SPDX-License-Identifier: Apache-2.0
"""From a decoded frame to the picture that a player would show."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame as DecodedFrame

# FFmpeg reads some as if their bytes were the other way round, and others end the process in older
# releases (32 bits per channel).
_UNREADABLE = re.compile(r"(rgb|bgr)(565|555)be|(gray|gbrap?)32[bl]e|rgb96[bl]e|rgba128[bl]e")


def rgb_of(frame: DecodedFrame, pixel_aspect: Fraction | None = None) -> npt.NDArray[np.uint8]:
    """Return the picture of a frame.

    Parameters
    ----------
    frame
        Of any pixel format: deeper ones are reduced to eight bits, an alpha channel is left out.
    pixel_aspect
        Width of a pixel over its height; the picture is widened or narrowed to square pixels.

    Returns
    -------
    ndarray
        (H, W, 3) uint8, RGB, turned and mirrored as its display matrix says.

    Raises
    ------
    ValueError
        If FFmpeg cannot turn the format into RGB.
    """
    name = frame.format.name
    size: dict[str, Any] = {}
    if pixel_aspect and pixel_aspect != 1 and Fraction(1, 8) <= pixel_aspect <= 8:
        size["width"] = max(1, round(frame.width * pixel_aspect))
    try:
        if _UNREADABLE.fullmatch(name):
            raise ValueError("FFmpeg does not read it as it should")
        image = np.asarray(frame.to_ndarray(format="rgb24", **size), dtype=np.uint8)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"a frame of pixel format {name} cannot be shown ({reason})") from error
    return _upright(image, frame)


def _upright(image: npt.NDArray[np.uint8], frame: DecodedFrame) -> npt.NDArray[np.uint8]:
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # there is more beside the frame, of a kind that PyAV has no name for
        turns = round(getattr(frame, "rotation", 0) / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns))
    if matrix is None:
        return image
    # FFmpeg's order: x' = a x + c y and y' = b x + d y, of which a quarter turn has b and c only.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        image = image.swapaxes(0, 1)
        a, d = c, b
    image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image)
