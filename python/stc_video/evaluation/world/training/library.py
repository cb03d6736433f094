# SPDX-License-Identifier: Apache-2.0
"""Short scenes, their frames encoded once and kept on disk; streams are put together from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stc_video.evaluation.world.cameras import CAMERAS, load_footage, take
from stc_video.evaluation.world.scenes import CARD, Frame, make_scene
from stc_video.loading.world_model import small_tower
from stc_video.models.llava_onevision import frame_preprocessor

#: frames of a scene
FRAMES = 3
#: layers of the tower whose outputs are kept
LAYERS = (4, 8, 11)

#: scenes after which all have a card: its signs are small, and take more pictures to learn
_ANY = 1900
_FEATURES, _DONE = "features.npy", "done.json"


class Library:
    """Scenes whose frames are encoded.

    Parameters
    ----------
    folder
        As :func:`fill_library` left it, finished or not.

    Attributes
    ----------
    features
        (S, FRAMES, T, D) float16 on disk: outputs of `LAYERS`, side by side, without CLS.
    scenes
        What is to be seen in each.
    """

    def __init__(self, folder: Path) -> None:
        done = json.loads((folder / _DONE).read_text())
        self.features = np.load(folder / _FEATURES, mmap_mode="r")[: done["scenes"]]
        self.scenes = [scene_of(done["seed"], number) for number in range(done["scenes"])]


def scene_of(seed: int, number: int) -> list[Frame]:
    """What is to be seen in a scene."""
    random = np.random.default_rng((seed, number))
    while True:
        scene = make_scene(random, FRAMES)
        if number < _ANY or any(thing.kind == CARD for frame in scene for thing in frame):
            return scene


def fill_library(
    folder: Path, scenes: int, seed: int, split: str = "train", show: Callable[[int], None] = print
) -> None:
    """Encode scenes from a seed; goes on where it was stopped.

    Raises
    ------
    ValueError
        If the folder has scenes of another seed or split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {"seed": seed, "split": split, "scenes": 0}
    if (folder / _DONE).exists():
        found = json.loads((folder / _DONE).read_text())
        if {**found, "scenes": 0} != state:
            raise ValueError(f"{folder} has scenes of another seed or split: {found}")
        state = found
    if state["scenes"] == scenes:
        return
    tower = small_tower()
    prepare, footage = frame_preprocessor(tower, None), load_footage(split)
    table = _table(folder / _FEATURES, scenes, tower.config.hidden_size * len(LAYERS))
    for number in range(int(str(state["scenes"])), scenes):
        random = np.random.default_rng((seed, number, 1))
        camera, clock = str(random.choice(CAMERAS)), int(random.integers(3600))
        pictures = list(take(camera, [scene_of(seed, number)], footage, random, clock))
        with torch.no_grad():
            states = tower(**prepare(pictures), output_hidden_states=True).hidden_states
        wanted = torch.cat([states[layer][:, 1:] for layer in LAYERS], dim=-1)
        table[number] = wanted.half().numpy()
        if number % 20 == 19 or number + 1 == scenes:
            table.flush()
            state["scenes"] = number + 1
            (folder / _DONE).write_text(json.dumps(state))
            show(number + 1)


def _table(path: Path, scenes: int, width: int) -> np.memmap[Any, np.dtype[np.float16]]:
    shape = (scenes, FRAMES, 64, width)
    if not path.exists():
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    table: np.memmap[Any, np.dtype[np.float16]] = np.lib.format.open_memmap(path, mode="r+")
    if table.shape != shape:
        raise ValueError(f"{path} has the shape {table.shape}, not {shape}")
    return table
