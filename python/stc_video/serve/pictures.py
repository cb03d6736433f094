# SPDX-License-Identifier: Apache-2.0
"""Pictures from the network, which may be anything."""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image

from stc_video.models.pictures import rgb_picture
from stc_video.serve.plain_files import PictureError, plain_file


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
    plain = plain_file(data, max_pixels)
    try:
        with warnings.catch_warnings():
            # Our limit is below the one that this warns of, or chosen by the user.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(plain), formats=("JPEG", "PNG"))
        return rgb_picture(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"the picture is damaged ({error})") from error
