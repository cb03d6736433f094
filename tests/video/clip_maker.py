# SPDX-License-Identifier: Apache-2.0
"""Real, tiny video files for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

Painter = Callable[[int], np.ndarray]


def moving_square(index: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A square on a textured ground, eight pixels further in every frame."""
    rows, columns = np.mgrid[:height, :width]
    ground = (60 + (rows * 3 + columns * 2) % 90).astype(np.uint8)
    image = np.repeat(ground[..., None], 3, axis=2)
    left = (8 * index) % (width - 16)
    image[16:32, left : left + 16] = (230, 120, 20)
    return image


def write_clip(
    path: Path,
    frames: int = 12,
    *,
    rate: int = 4,
    paint: Painter = moving_square,
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    pixels: str = "yuv420p",
    rotation: int = 0,
    flips: tuple[bool, bool] = (False, False),
    times: Sequence[int] | None = None,
    last: int | None = None,
    quality: int | None = None,
    setup: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Write a video.

    `times` are the presentation times in units of 1 / rate, for a variable frame rate, and `last`
    is for how many of them the last picture stands. `flips` are (horizontal, vertical).
    """
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        first = paint(0)
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixels
        stream.gop_size = 4
        if rotation or any(flips):
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV cannot write a display matrix")
            stream.set_display_rotation(rotation, hflip=flips[0], vflip=flips[1])
        if quality is not None:  # 2 is the best
            stream.codec_context.options = {"qmin": str(quality), "qmax": str(quality)}
            stream.bit_rate = 8_000_000
        setup(stream)
        packets: list[Any] = []
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(index), format="rgb24")
            frame.pts = index if times is None else times[index]
            packets += stream.encode(frame)
        packets += stream.encode(None)
        if last is not None:
            packets[-1].duration = last
        container.mux(packets)
    return path


def truncate(path: Path, part: float) -> Path:
    """Cut a file after this part of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


def write_sound(path: Path) -> Path:
    """Write a file with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=8000)
        samples = np.zeros((1, 800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
