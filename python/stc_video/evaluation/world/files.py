# SPDX-License-Identifier: Apache-2.0
"""Writes streams as video files, and their questions as a file of OVO-Bench's format."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stc_video.evaluation.world.cameras import CAMERAS, SIDE, Footage, load_footage, take
from stc_video.evaluation.world.questions import Balance, write_row
from stc_video.evaluation.world.scenes import Frame
from stc_video.evaluation.world.streams import ask_about, make_stream

#: name of the file of questions
QUESTIONS = "ovo_bench_world.json"
#: what seeds of different purposes begin with, so that none is used twice
_PURPOSES = {"train": 0, "tune": 1, "test": 2}


def eval_command(data: Path, videos: Path) -> str:
    """Return the command that asks the small model, with every frame and every token.

    A frame has 16 tokens, fewer than pruners keep by default.
    """
    files = ("--data", data, "--videos", videos)
    options = ("--policy", "none", "--prune", "none", "--memory", "plain", "--max-new-tokens", "4")
    words = ("stc", "eval", "ovo-bench", *files, "--model", "stc-world", *options)
    return shlex.join(map(str, words))


def write_world(
    folder: Path,
    split: str,
    streams: int,
    *,
    seconds: tuple[int, int] = (10, 24),
    questions: int = 12,
    seed: int = 0,
    cameras: Sequence[str] = CAMERAS,
    show: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write streams and what is asked about them.

    Parameters
    ----------
    folder
        Gets ``camera/number.mp4`` for each stream, and the file of questions.
    split
        "train", "tune" or "test": another ground and other seeds.
    streams
        How many; the cameras take turns.
    seconds
        Shortest and longest.
    questions
        For each stream, at most.
    seed
        The same files for the same seed and release of FFmpeg.
    cameras
        Which.
    show
        Is told how many streams are done.

    Returns
    -------
    Path
        The file of questions. Its rows have the camera, too.
    """
    footage = load_footage(split)
    balance = Balance()
    rows: list[dict[str, Any]] = []
    for number in range(streams):
        random = np.random.default_rng((_PURPOSES[split], seed, number))
        camera = cameras[number % len(cameras)]
        scenes = make_stream(random, int(random.integers(seconds[0], seconds[1] + 1)))
        video = f"{camera}/{number:04}.mp4"
        _write_video(folder / video, camera, scenes, footage, random)
        history = [frame for scene in scenes for frame in scene]
        for now, question in ask_about(random, history, questions, balance):
            rows.append(write_row(question, len(rows), video, now) | {"camera": camera})
        show(number + 1)
    path = folder / QUESTIONS
    path.write_text(json.dumps(rows, indent=1))
    return path


def _write_video(
    path: Path,
    camera: str,
    scenes: Sequence[Sequence[Frame]],
    footage: Footage,
    random: np.random.Generator,
) -> None:
    """Write a stream of a frame a second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.options = {"qmin": "2", "qmax": "4"}
        stream.bit_rate = 4_000_000
        for number, picture in enumerate(take(camera, scenes, footage, random)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
