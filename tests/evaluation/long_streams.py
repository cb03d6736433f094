# SPDX-License-Identifier: Apache-2.0
"""Streams of any length in which things are to be seen at known times.

Every picture is encoded once, and its tokens are pushed as often as it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stc_video.evaluation.loaders.ovo_bench import queries_of
from stc_video.evaluation.queries import Query
from stc_video.evaluation.world.cameras import Footage, take
from stc_video.evaluation.world.questions import Question, write_row
from stc_video.evaluation.world.scenes import CARD, Frame, Thing, make_scene
from stc_video.loading.video_llm import ChatModel
from stc_video.pruners import PrunedTokens, make_pruner
from stc_video.session import StreamingSession

#: frames for which a thing is to be seen
SHOWN = 3


def thing(kind: str, look: str, place: int = 0) -> Thing:
    return Thing(kind, look, place, 0.8, (0.0, 0.0))


def scenes_without(kinds: Sequence[str], count: int, seed: int) -> list[list[Frame]]:
    """Scenes of four frames in which none of these is to be seen."""
    random, made = np.random.default_rng(seed), []
    while len(made) < count:
        scene = make_scene(random, 4)
        if not {one.kind for frame in scene for one in frame} & set(kinds):
            made.append(scene)
    return made


@dataclass
class Camera:
    """Films scenes in front of one clip, and encodes the pictures."""

    chat: ChatModel
    footage: Footage

    def __post_init__(self) -> None:
        scenes = scenes_without([CARD], 12, 0)
        self._pool = self.film(scenes).unflatten(0, (len(scenes), -1))

    def film(self, scenes: Sequence[Sequence[Frame]], seed: int = 0) -> Tensor:
        """Tokens of all frames (F, N, D)."""
        pictures = np.stack(list(take("cut", scenes, self.footage, np.random.default_rng(seed))))
        with self.open() as session, torch.inference_mode():
            pixels, _ = session._adapter.prepare(pictures, None)
            return session._handle.encode(pixels, "film")

    def open(self, **settings: Any) -> StreamingSession:
        settings = {"memory": "plain", "cache": None, "prune": "none", **settings}
        return StreamingSession(self.chat.model, self.chat.processor, **settings)

    def stream(self, events: Mapping[int, Thing], length: int, seed: int = 0) -> Tensor:
        """A stream without cards but those that are to be seen from their times on for a while."""
        order = np.random.default_rng(seed).integers(0, len(self._pool), -(-length // 4))
        made = self._pool[torch.from_numpy(order)].flatten(0, 1)[:length]
        for time, one in events.items():
            made[time : time + SHOWN] = self.film([[(one,)] * SHOWN], time)
        return made


def push(session: StreamingSession, tokens: Tensor, start: int = 0) -> None:
    """Push the tokens of frames, a second apart."""
    for first in range(0, len(tokens), 64):
        piece = tokens[first : first + 64]
        times = [float(start + first + at) for at in range(len(piece))]
        session.push_tokens(make_pruner("none")(piece), times)


def push_part(session: StreamingSession, tokens: Tensor, places: Sequence[int]) -> None:
    """Push only the tokens of these places."""
    indices = torch.tensor(places, dtype=torch.int32).expand(len(tokens), -1)
    counts = torch.full((len(tokens),), len(places), dtype=torch.int32)
    session.push_tokens(PrunedTokens(tokens[:, list(places)], indices, counts))


def look_of(kind: str, options: Sequence[str]) -> Query:
    """Ask what a thing looked like when it was last seen."""
    what = "Which sign was on the" if kind == CARD else "What colour was the"
    text = f"{what} {kind} when it was last seen?"
    asked = Question("EPM", text, options[0], tuple(options))
    [query] = queries_of(write_row(asked, 0, "v.mp4", 1.0))
    return query
