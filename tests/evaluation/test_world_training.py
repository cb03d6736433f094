# SPDX-License-Identifier: Apache-2.0
"""The training on the world: hints that are true, packed questions that are those asked alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from stc_video.evaluation.world.questions import HAPPENED, Balance
from stc_video.evaluation.world.scenes import CARD, PLACES, SHAPES, Frame, Thing
from stc_video.evaluation.world.streams import ask_about, make_stream
from stc_video.evaluation.world.training.hints import HINTS, KINDS, Hints, hints_of
from stc_video.evaluation.world.vocabulary import LOOKS

NAMES = list(HINTS)


def known(history: list[Frame], kind: str, now: int = -1) -> dict[str, int]:
    return dict(zip(NAMES, hints_of(history)[now][KINDS.index(kind)].tolist(), strict=True))


def thing(kind: str, look: str, place: int = 0) -> Thing:
    return Thing(kind, look, place, 0.8, (0.0, 0.0))


def test_hints_say_what_the_answers_say():
    """Two independent ways to the same truth: the questions', and that of the hints."""
    checked = dict.fromkeys(NAMES, 0)
    for number in range(60):
        random = np.random.default_rng((5, number))
        history = [frame for scene in make_stream(random, 18) for frame in scene]
        hints = hints_of(history)
        for now, question in ask_about(random, history, 12, Balance()):
            words = question.text.rstrip("?").split()
            kind = next((w for w in reversed(words) if w in KINDS), None)
            if question.task == "ASI":
                order = [hints[now][KINDS.index(option)][4] for option in question.options]
                assert question.options[int(np.argmin(order))] == question.answer
                checked["order"] += 1
            if kind is None or question.task in ("ASI", "OJR"):
                continue
            found = dict(zip(NAMES, hints[now][KINDS.index(kind)].tolist(), strict=True))
            if question.task == "REC":
                assert found["times"] == min(3, int(question.answer))
                checked["times"] += 1
            elif question.task == "ACR":
                assert HAPPENED[found["just now"] - 1] == question.answer
                checked["just now"] += 1
            elif question.task == "STU":
                assert PLACES[found["place"] - 1] == question.answer
                checked["place"] += 1
            elif question.text.startswith("What colour") and question.task in ("ATR", "EPM"):
                assert LOOKS[found["look"] - 1] == question.answer
                checked["look"] += 1
    assert min(checked.values()) > 10, checked


def test_what_never_came_is_known_to_be_absent():
    found = known([(thing("circle", "red"),), ()], "star")
    assert found == {"times": 0, "just now": 0, "look": 0, "place": 0, "order": len(SHAPES) + 1}
    gone = known([(thing("circle", "red", 2),), ()], "circle")
    assert gone == {"times": 1, "just now": 0, "look": 1 + LOOKS.index("red"), "place": 3,
                    "order": 0}  # fmt: skip


def test_a_move_and_a_change_at_once_has_no_label():
    history = [(thing(CARD, "4"),), (thing(CARD, "K", 1),)]
    assert known(history, CARD)["just now"] == -100


def test_hints_can_be_read_from_states_that_have_them():
    torch.manual_seed(0)
    reader, states = Hints(16), torch.randn(64, 16)
    wanted = torch.stack([(states[:, i] > 0).long() for i in range(len(HINTS))], dim=1)
    wanted[0] = -100
    plan, losses = torch.optim.Adam(reader.parameters(), 0.1), []
    for _ in range(60):
        loss = reader(states, wanted).mean()
        plan.zero_grad()
        loss.backward()
        plan.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert all(np.isfinite(losses))


def test_tokens_and_words_come_to_one_scale():
    from stc_video.evaluation.world.training.projector import scale

    torch.manual_seed(0)

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear_2 = torch.nn.Linear(8, 12)

    projector, states, words = Small(), torch.randn(50, 8), 0.02 * torch.randn(5, 12)
    words[0] = 0
    direction = words[1] / words[1].norm()
    made = scale(projector, words, 40 * projector.linear_2(states) / 40)
    assert torch.allclose(made, projector.linear_2(states), atol=1e-4)
    assert made.norm(dim=-1).mean().item() == pytest.approx(10, rel=1e-3)
    assert words.norm(dim=-1).tolist() == pytest.approx([0, 7, 7, 7, 7], rel=1e-3)
    assert torch.allclose(words[1] / words[1].norm(), direction, atol=1e-5)


def test_frames_of_a_composed_stream_go_on_and_scenes_fit():
    from stc_video.evaluation.world.training.decoder import Decoder, DecoderSettings
    from stc_video.evaluation.world.training.library import scene_of

    class Composer(Decoder):
        def __init__(self) -> None:
            self._scenes, self._settings = [scene_of(1, n) for n in range(40)], DecoderSettings()

    made = Composer()._compose(np.random.default_rng(2), 24)
    assert len(made) == 24
    for (scene, frame), (after, later) in pairwise(made):
        assert later >= frame if scene == after else later == 0


def test_scenes_after_the_first_ones_have_a_card():
    from stc_video.evaluation.world.training.library import scene_of

    def has_card(number: int) -> bool:
        return any(one.kind == CARD for frame in scene_of(1, number) for one in frame)

    assert all(has_card(number) for number in range(1900, 1930))
    assert not all(has_card(number) for number in range(1870, 1900))
