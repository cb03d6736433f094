# SPDX-License-Identifier: Apache-2.0
"""What a stream has shown of a kind so far, as labels for single tokens.

A question teaches one answer. These labels teach every token of the video, and every word for a
kind in a question, what there is to know about its kind at its moment. They serve the training
alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from stc_video.evaluation.world.scenes import CARD, SHAPES, Frame, Thing
from stc_video.evaluation.world.vocabulary import LOOKS

KINDS = (*SHAPES, CARD)
_NO = -100
_MOST_TIMES = 3
#: what is to be known -> number of classes; 0 is "never" or "not there", but for the order
HINTS = {
    "times": _MOST_TIMES + 1,
    "just now": 5,  # not there, came, moved, changed, stayed
    "look": len(LOOKS) + 1,
    "place": 5,
    "order": len(SHAPES) + 2,  # how many shapes had been seen before; the last is "never"
}


def hints_of(history: Sequence[Frame]) -> npt.NDArray[np.int64]:
    """Labels (frames, kinds, hints): what is known of each kind once each frame was seen."""
    made = np.zeros((len(history), len(KINDS), len(HINTS)), np.int64)
    state = np.zeros((len(KINDS), len(HINTS)), np.int64)
    state[:, 4] = HINTS["order"] - 1
    before: dict[str, Thing] = {}
    for time, frame in enumerate(history):
        shapes = int((state[:-1, 0] > 0).sum())
        state[:, 1] = 0
        for thing in frame:
            row, old = state[KINDS.index(thing.kind)], before.get(thing.kind)
            if row[0] == 0:
                row[4] = shapes
            row[0] = min(_MOST_TIMES, row[0] + (old is None))
            row[1] = _happened(old, thing)
            row[2], row[3] = 1 + LOOKS.index(thing.look), 1 + thing.place
        before = {thing.kind: thing for thing in frame}
        made[time] = state
    return made


def _happened(old: Thing | None, new: Thing) -> int:
    if old is None:
        return 1
    moved, changed = old.place != new.place, old.look != new.look
    if moved and changed:
        return _NO
    return 2 if moved else 3 if changed else 4


class Hints(nn.Module):
    """Reads the hints from states of the decoder.

    Parameters
    ----------
    width
        Of the states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, elementwise_affine=False)
        self.head = nn.Linear(width, sum(HINTS.values()))

    def forward(self, states: Tensor, wanted: Tensor) -> Tensor:
        """Losses (hints,) of states (N, D) for labels (N, hints), those of -100 left out."""
        found = self.head(self.norm(states)).split(list(HINTS.values()), dim=-1)
        losses = [cross_entropy(x, wanted[:, i], ignore_index=_NO) for i, x in enumerate(found)]
        return torch.stack(losses)
