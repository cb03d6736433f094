# SPDX-License-Identifier: Apache-2.0
"""Whole streams: scenes that follow each other, and what is asked about them when."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stc_video.evaluation.world.questions import FAMILIES, Balance, Question, ask
from stc_video.evaluation.world.scenes import Frame, make_scene

_TRIES = 30
Scene = Sequence[Frame]


def make_stream(random: np.random.Generator, frames: int) -> list[list[Frame]]:
    """Make scenes of three to six frames each, `frames` in all."""
    scenes: list[list[Frame]] = []
    left = frames
    while left:
        length = left if left <= 6 else int(random.integers(3, min(6, left - 3) + 1))
        made = make_scene(random, length)
        for _ in range(_TRIES):
            if not scenes or follows(scenes[-1], made):
                break
            made = make_scene(random, length)
        scenes.append(made)
        left -= length
    return scenes


def follows(one: Scene, other: Scene) -> bool:
    """Whether nothing is there before and after the cut, which would be one thing or two."""
    return not {thing.kind for thing in one[-1]} & {thing.kind for thing in other[0]}


def ask_about(
    random: np.random.Generator,
    history: Sequence[Frame],
    count: int,
    balance: Balance,
    families: Sequence[str] = tuple(FAMILIES),
    first: int = 0,
) -> list[tuple[int, Question]]:
    """Ask up to so many different questions at random moments.

    Returns
    -------
    list
        (index of the last frame that was seen, question), in order of time.
    """
    asked: dict[tuple[int, str], Question] = {}
    for _ in range(count):
        family = families[int(random.integers(len(families)))]
        for _ in range(_TRIES):
            now = int(random.integers(first, len(history)))
            question = ask(random, family, history[: now + 1], balance)
            if question is not None and (now, question.text + question.task) not in asked:
                asked[now, question.text + question.task] = question
                break
    return sorted(((now, q) for (now, _), q in asked.items()), key=lambda pair: pair[0])
