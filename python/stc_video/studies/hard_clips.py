# SPDX-License-Identifier: Apache-2.0
"""Clips that are hard to cache, made from still pictures: night, fades, codecs, screens, weather.

Each is a function of a scene, a frame rate and a seed, and gives the same frames every time. What
happens is told in seconds, so that a lower frame rate sees more of it between two frames.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

#: pixels on a side
SIDE = 256


@dataclass(frozen=True, eq=False)
class Scene:
    """The stills that a clip is made of.

    Attributes
    ----------
    first, second
        (H, W, 3) uint8 stills, at least 64 pixels high and wide.
    """

    first: Picture
    second: Picture

    def still(self, which: int = 0, side: int = SIDE) -> Floats:
        """Return a still, (side, side, 3) float32 from 0 to 255."""
        return resized((self.first, self.second)[which], side, side)


Maker = Callable[[Scene, "Moments", np.random.Generator], Iterator[Floats]]


@dataclass(frozen=True)
class Moments:
    """When the frames of a clip are: ``frames`` of them, ``fps`` in a second."""

    frames: int
    fps: float

    @property
    def times(self) -> list[float]:
        """Seconds since the first frame."""
        return [number / self.fps for number in range(self.frames)]

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last one."""
        return self.frames / self.fps


def hard_clip(
    name: str, scene: Scene, *, fps: float, frames: int = 40, seed: int = 0
) -> list[Picture]:
    """Make a clip.

    Parameters
    ----------
    name
        One of `HARD_CLIPS`.
    scene
        The stills.
    fps
        Frames per second.
    frames
        How many.
    seed
        Of whatever is random in it.

    Returns
    -------
    list of ndarray
        (SIDE, SIDE, 3) uint8 each.

    Raises
    ------
    ValueError
        If there is no such clip.
    """
    if name not in HARD_CLIPS:
        raise ValueError(f"hard_clip: name must be one of {', '.join(HARD_CLIPS)}, got {name!r}")
    pictures = HARD_CLIPS[name](scene, Moments(frames, fps), np.random.default_rng(seed))
    return [_rounded(picture) for picture in pictures]


def resized(picture: Picture, height: int, width: int) -> Floats:
    """Scale a picture without its rim to another size, float32."""
    rows, columns = min(picture.shape[0], picture.shape[1] * height // width), picture.shape[1]
    columns = min(columns, rows * width // height)
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    cut = np.ascontiguousarray(picture[top : top + rows, left : left + columns])
    frame = av.VideoFrame.from_ndarray(cut, format="rgb24")
    scaled = frame.reformat(width, height, interpolation="AREA")
    result: Floats = scaled.to_ndarray(format="rgb24").astype(np.float32)
    return result


def _rounded(picture: Floats) -> Picture:
    whole: Picture = picture.round().clip(0, 255).astype(np.uint8)
    return whole


def _walker(picture: Floats, time: float, *, speed: float = 20.0, level: float = 0.3) -> Floats:
    """Put a dark figure into a picture, which walks through it at some pixels per second."""
    height, width = picture.shape[:2]
    tall, wide = height // 3, width // 10
    left = int(time * speed) % (width + wide) - wide
    result: Floats = picture.copy()
    result[height - tall - 8 : height - 8, max(0, left) : max(0, left + wide)] *= level
    return result


def _night(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A dark street, most of what the sensor gives being noise; someone walks by."""
    ground = scene.still() * 0.1
    for time in when.times:
        picture = _walker(ground, time)
        grain = random.normal(0.0, 1.0, picture.shape).astype(np.float32)
        yield picture + 4.0 + grain * np.sqrt(4.0 + picture)


def _infrared(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A camera that switches to infrared after a third of the clip, and back after two."""
    ground = scene.still()
    for time in when.times:
        picture = _walker(ground, time)
        if when.seconds / 3 <= time < when.seconds * 2 / 3:
            grey = picture @ np.array([0.6, 0.3, 0.1], np.float32)
            picture = np.repeat((40.0 + 0.6 * grey)[..., None], 3, axis=2)
        yield picture + random.normal(0.0, 1.0, picture.shape).astype(np.float32)


def _dissolve(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """One picture turns into another within four seconds, rests for two, and turns back."""
    first, second = scene.still(0), scene.still(1)
    for time in when.times:
        phase = time % 12.0
        share = min(phase / 4.0, 1.0) if phase < 6.0 else max(0.0, 1.0 - (phase - 6.0) / 4.0)
        picture: Floats = (1.0 - share) * first + share * second
        yield picture + random.normal(0.0, 1.0, picture.shape).astype(np.float32)


def _letterbox(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A film between black bars, which cuts from one slow pan to another."""
    wide = [resized(still, SIDE // 2, SIDE) for still in (scene.first, scene.second)]
    for time in when.times:
        film = np.roll(wide[int(time / 5.0) % 2], int(time * 6.0), axis=1)
        picture = np.zeros((SIDE, SIDE, 3), np.float32)
        picture[SIDE // 4 : SIDE // 4 + SIDE // 2] = film
        yield picture + np.abs(random.normal(0.0, 0.7, picture.shape)).astype(np.float32)


def _pumping(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A still scene in a starved MPEG-4 stream: it blurs, and jumps at each key frame."""
    rate = 10
    count = int(np.ceil(when.seconds * rate)) + 1
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = SIDE
        stream.pix_fmt, stream.gop_size, stream.bit_rate = "yuv420p", 2 * rate, 60_000
        for number in range(count):
            picture = _walker(scene.still(), number / rate)
            grain = random.normal(0.0, 3.0, picture.shape).astype(np.float32)
            frame = av.VideoFrame.from_ndarray(_rounded(picture + grain), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    for time in when.times:
        yield pictures[min(len(pictures) - 1, round(time * rate))].astype(np.float32)


def _screen(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A window with lines of text, which scrolls every three seconds, a cursor, and a picture."""
    page = np.full((4 * SIDE, SIDE, 3), 252.0, np.float32)
    for top in range(8, len(page) - 10, 10):
        letters = random.random((6, SIDE // 3 - 20)) < 0.45
        letters[:, random.random(letters.shape[1]) < 0.15] = False
        length = int(random.integers(20, letters.shape[1]))
        ink = np.repeat(letters[:, :length], 2, axis=1)
        page[top : top + 6, 10 : 10 + ink.shape[1]][ink] = 30.0
    inset = scene.still(0, SIDE // 4)
    for time in when.times:
        scrolled = 30 * int(time / 3.0) % (3 * SIDE)
        picture = page[scrolled : scrolled + SIDE].copy()
        picture[:16] = (60.0, 70.0, 90.0)
        picture[24 : 24 + SIDE // 4, -SIDE // 4 - 8 : -8] = inset
        x = int(128 + 90 * np.sin(time * 0.7))
        y = int(128 + 70 * np.cos(time * 0.5))
        picture[y : y + 9, x : x + 6] = 0.0
        yield picture


def _pan(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """A camera that turns slowly, rests, and turns back."""
    large = scene.still(0, 2 * SIDE)
    for time in when.times:
        left = int(SIDE / 2 * (1.0 - np.cos(time * 0.4)))
        picture = large[SIDE // 2 : SIDE // 2 + SIDE, left : left + SIDE]
        yield picture + random.normal(0.0, 1.0, picture.shape).astype(np.float32)


def _dawn(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """It gets light: from a twentieth of the light to all of it, and from blue to white."""
    ground = scene.still()
    for time in when.times:
        share = time / when.seconds
        light = 0.05 + 0.95 * share
        tint = np.array([0.6 + 0.4 * share, 0.8 + 0.2 * share, 1.0], np.float32)
        picture = _walker(ground, time) * light * tint
        yield picture + random.normal(0.0, 1.5, picture.shape).astype(np.float32)


def _snow(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """Flakes fall in front of a still scene, other ones in each frame."""
    ground = 0.7 * scene.still() + 50.0
    for time in when.times:
        picture = _walker(ground, time)
        for y, x in random.integers(0, SIDE - 4, (250, 2)):
            size = int(random.integers(1, 4))
            picture[y : y + size, x : x + size] = 245.0
        yield picture


def _flicker(scene: Scene, when: Moments, random: np.random.Generator) -> Iterator[Floats]:
    """Lamps on the mains: bands of light and dark, at another place in each frame."""
    ground = scene.still()
    rows = np.arange(SIDE, dtype=np.float32)[:, None, None]
    for time in when.times:
        phase = random.uniform(0.0, 2.0 * np.pi)
        bands = 1.0 + 0.18 * np.sin(rows * 2.0 * np.pi / SIDE * 1.5 + phase)
        picture = _walker(ground, time) * bands.astype(np.float32)
        yield picture + random.normal(0.0, 1.5, picture.shape).astype(np.float32)


#: name -> what makes the clip
HARD_CLIPS: dict[str, Maker] = {
    "night": _night,
    "infrared": _infrared,
    "dissolve": _dissolve,
    "letterbox": _letterbox,
    "pumping": _pumping,
    "screen": _screen,
    "pan": _pan,
    "dawn": _dawn,
    "snow": _snow,
    "flicker": _flicker,
}
