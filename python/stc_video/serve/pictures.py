# SPDX-License-Identifier: Apache-2.0
"""Pictures from the network, which may be anything."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from stc_video.models.pictures import rgb_picture

__all__ = ["PictureError", "check_picture", "decode_picture"]

_FORMATS = ("JPEG", "PNG")


class PictureError(ValueError):
    """Bytes that are no picture, or one that is too large; nothing of it was kept."""


def check_picture(data: bytes, max_pixels: int) -> None:
    """Read the header only: refuse what is no JPEG or PNG, or would be too large when decoded.

    Raises
    ------
    PictureError
        Says what is wrong.
    """
    _open(data, max_pixels)


def decode_picture(data: bytes, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Decode a JPEG or PNG.

    Parameters
    ----------
    data
        The file.
    max_pixels
        Largest width times height.

    Returns
    -------
    ndarray
        (H, W, 3) uint8, RGB, upright; sixteen-bit grey scaled to eight bits.

    Raises
    ------
    PictureError
        If it is none, damaged, or too large.
    """
    picture = _open(data, max_pixels)
    try:
        return rgb_picture(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"the picture is damaged ({error})") from error


def _open(data: bytes, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Our limit is below the one that this warns of, or chosen by the user.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise PictureError(f"a frame must be a JPEG or PNG, got {len(data)} other bytes") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"a frame must have at most {max_pixels} pixels ({error})") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"the picture is damaged ({error})") from error
    width, height = picture.size
    if width * height > max_pixels:
        raise PictureError(f"a frame must have at most {max_pixels} pixels, got {width} x {height}")
    return picture
