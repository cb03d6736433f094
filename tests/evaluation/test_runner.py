# SPDX-License-Identifier: Apache-2.0
"""Questions asked of videos in one pass, clip by clip, and over interruptions."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_files import PROACTIVE, ovo_choice, ovo_rows, streaming_entry, write_json
from clip_maker import moving_square, write_clip
from forking import fork
from killed_save import kill_before

from stc_video import StreamingSession
from stc_video.evaluation.answers import AnswerFile, read_answers
from stc_video.evaluation.configurations import Configuration, controls
from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.plan import parse_shard, sample, shard_of
from stc_video.evaluation.queries import DataError, Query
from stc_video.evaluation.runner import Runner, Sampling

DENSE = Configuration("dense", policy="none", prune="none", memory="plain")
STC = Configuration("stc", policy="motion", tokens_per_frame=6, retrieve_tokens=18)
SHORT = Sampling(fps=2, max_new_tokens=4)


def ovo(tmp_path: Path, *more: dict) -> list[Query]:
    return load_queries("ovo-bench", write_json(tmp_path / "o.json", [*ovo_rows(), *more])).queries


def run(path, chat, videos, queries, configurations, sampling=SHORT, **settings):
    """Run; returns the answers by configuration and question."""
    with AnswerFile(path, {"x": 1}, resume=path.exists()) as answers:
        runner = Runner(chat, configurations, sampling, videos, answers, **settings)
        try:
            runner.run(queries)
        finally:
            runner.close()
    return {(e["configuration"], e["key"]): e for e in read_answers(path)[1]
            if e["kind"] == "answer"}  # fmt: skip


def texts(found) -> dict:
    return {key: entry["answer"] for key, entry in found.items()}


def test_one_pass_and_a_clip_for_each_question_give_the_same_answers(
    chat, videos, tmp_path: Path
) -> None:
    queries = ovo(tmp_path, *(ovo_choice(10 + n, realtime=n) for n in range(5)))
    stream = run(tmp_path / "stream", chat, videos, queries, [DENSE])
    clip = run(tmp_path / "clip", chat, videos, queries, [DENSE], replace(SHORT, protocol="clip"))
    assert texts(stream) == texts(clip)
    assert len(set(texts(stream).values())) > 3
    for (_, key), entry in stream.items():
        query = next(query for query in queries if query.key == key)
        assert entry["frames"] == 2 * query.time + 1  # the frame at its time included
        assert entry["frames"] == clip["dense", key]["frames"]


def test_configurations_together_are_those_one_by_one(chat, videos, tmp_path: Path) -> None:
    queries = ovo(tmp_path)
    both = [DENSE, STC, *controls(STC, 16)[1:]]
    together = run(tmp_path / "all", chat, videos, queries, both)
    for number, one in enumerate(both):
        alone = run(tmp_path / str(number), chat, videos, queries, [one])
        assert texts(alone) == {key: t for key, t in texts(together).items() if key[0] == one.name}
    assert getattr(chat.model, "stc", None) is None  # the model is as before


def test_controls_read_as_many_tokens(chat, videos, tmp_path: Path) -> None:
    queries = [query for query in ovo(tmp_path) if query.key == "1"]
    found = run(tmp_path / "a", chat, videos, queries, [STC, *controls(STC, 16)])
    frames = {name: [frame[1] for frame in entry["retrieved"] or ()] for (name, _), entry in
              found.items()}  # fmt: skip
    # 9 frames were seen, until second 4; 18 tokens are 3 frames of 6 in each layer, or one of 16.
    layers = sum(frame[2] for frame in found["stc", "1"]["retrieved"])
    assert layers == 3 * chat.model.config.text_config.num_hidden_layers
    assert frames["last 4 frames"] == [2.5, 3.0, 3.5, 4.0]
    assert len(frames["uniform frames"]) == 1
    assert found["dense", "1"]["frames"] == 9
    plain = replace(STC, name="", memory="plain")
    uniform = controls(plain, 16)[3]
    found = run(tmp_path / "b", chat, videos, queries, [uniform])
    assert found["uniform frames", "1"]["frames"] == 4  # 9 * 6 / 16 rounded, the first included


def test_blind_answers_do_not_depend_on_the_pictures(chat, tmp_path: Path) -> None:
    def inverted(index: int) -> np.ndarray:
        return 255 - moving_square(index)

    for name, paint in (("one.mp4", moving_square), ("other.mp4", inverted)):
        write_clip(tmp_path / name, 16, paint=paint)
    asked = [
        ovo_choice(n, video=name, realtime=3) for n, name in enumerate(("one.mp4", "other.mp4"))
    ]
    data = write_json(tmp_path / "o.json", asked)
    blind = next(one for one in controls(DENSE, 16) if one.blind)
    queries = load_queries("ovo-bench", data).queries
    found = texts(run(tmp_path / "a", chat, tmp_path, queries, [DENSE, blind]))
    assert found["blind", "0"] == found["blind", "1"]
    assert found["dense", "0"] != found["dense", "1"]


def test_uniform_frames_of_a_clip(chat, videos, tmp_path: Path) -> None:
    queries = [query for query in ovo(tmp_path) if query.key == "1"]
    memory = replace(DENSE, memory="window", window_frames=9)
    sampling = Sampling("clip", frames=3, max_new_tokens=2)
    found = run(tmp_path / "a", chat, videos, queries, [memory], sampling)
    assert [frame[1] for frame in found["dense", "1"]["retrieved"]] == [0.0, 2.0, 4.0]


def test_what_is_bad_is_counted_and_named(chat, videos, tmp_path: Path) -> None:
    queries = ovo(
        tmp_path,
        ovo_choice(20, video="nowhere.mp4"),
        ovo_choice(21, video="broken.mp4", realtime=1),
        ovo_choice(22, video="broken.mp4", realtime=6),
        ovo_choice(23, options=[]),
        ovo_choice(24, realtime=60),
    )
    small = replace(DENSE, name="small", max_tokens=64)
    found = run(tmp_path / "a", chat, videos, queries, [DENSE, small])
    assert set(found) == {(name, q.key) for name in ("dense", "small") for q in queries}
    said = {key: entry["problem"].partition(":")[0] for (name, key), entry in found.items()
            if name == "dense" and entry["problem"]}  # fmt: skip
    assert said == {"20": "missing video", "22": "broken video", "23": "no options"}
    assert found["dense", "21"]["answer"] is not None
    assert found["dense", "24"]["note"] == "asked at 60 s, after the end at 6.0 s"
    assert found["dense", "24"]["frames"] == 12
    assert found["small", "1"]["problem"].startswith("memory full: memory: a plain memory of 64")


class Saying:
    """A tokenizer's text in place of the model's, by what was asked."""

    def __init__(self, contender, said):
        self._ask, self._said, self.asked = contender.ask, said, []
        contender.ask = self

    def __call__(self, prompt: str, length: int):
        made = self._ask(prompt, length)
        self.asked.append((made.frame, "right time" in prompt))
        return replace(made, text=self._said(made.frame, prompt))


@pytest.mark.parametrize(
    ("from_frame", "answer", "at"), [(7, "GO", 3.0), (99, None, None), (1, "GO", 2.0)]
)
def test_proactive_questions(chat, videos, tmp_path, from_frame: int, answer, at) -> None:
    data = write_json(tmp_path / "p.json", [streaming_entry(PROACTIVE, video="v.mp4")])
    queries = load_queries("streamingbench", data).queries

    def said(frame: int, prompt: str) -> str:
        return ("Yes." if frame >= from_frame else "no") if "right time" in prompt else "GO"

    with AnswerFile(tmp_path / "a", {}, resume=False) as answers:
        runner = Runner(chat, [DENSE], SHORT, videos, answers)
        saying = Saying(runner._contenders[0], said)
        runner.run(queries)
        runner.close()
    (entry,) = [e for e in read_answers(tmp_path / "a")[1] if e["kind"] == "answer"]
    assert (entry["answer"], entry["time"]) == (answer, at)
    # It is probed at seconds 2 to 7, until it says yes; the video ends at second 6.
    assert sum(probe for _, probe in saying.asked) == {7: 2, 99: 6, 1: 1}[from_frame]


def test_stopping_and_going_on(chat, videos, tmp_path: Path) -> None:
    queries, path = ovo(tmp_path), tmp_path / "a"
    whole = run(tmp_path / "whole", chat, videos, queries, [STC])
    for _ in queries:
        said: list[str] = []
        run(path, chat, videos, queries, [STC], on_answer=lambda given: said.append("x"),  # noqa: B023
            stopped=lambda: bool(said))  # noqa: B023  # fmt: skip
        assert len(said) <= 1
    assert texts(run(path, chat, videos, queries, [STC])) == texts(whole)


def test_twenty_kills_lose_and_repeat_nothing(chat, videos, tmp_path: Path) -> None:
    queries = ovo(tmp_path, *(ovo_choice(10 + n, realtime=n) for n in range(6)))
    path, sampling = tmp_path / "answers", replace(SHORT, max_new_tokens=1)
    whole = run(tmp_path / "whole", chat, videos, queries, [DENSE], sampling)
    steps = ((StreamingSession, "ask"), (AnswerFile, "_write"), (AnswerFile, "sync"))
    chance = random.Random(0)
    for number in range(20):
        step, child = chance.randrange(4), fork()
        if not child:
            try:
                torch.set_num_threads(1)
                kill_before(step, steps)
                run(path, chat, videos, queries, [DENSE], sampling)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        if number % 5 == 4 and path.exists():  # as if the disk had taken half of a line
            with path.open("ab") as file:
                file.write(b'{"kind": "answer", "conf')
    assert 0 < len(read_answers(path)[1]) < len(queries)
    found = run(path, chat, videos, queries, [DENSE], sampling)
    assert texts(found) == texts(whole)
    counts = Counter((e["configuration"], e["key"]) for e in read_answers(path)[1]
                     if e["kind"] == "answer")  # fmt: skip
    assert set(counts.values()) == {1}


def test_a_file_of_answers_is_not_mixed_up(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    with AnswerFile(path, {"fps": 1, "model": "a"}, resume=False) as answers:
        answers.answer("dense", "1", answer="B")
        with pytest.raises(ValueError, match="1 has an answer by dense already"):
            answers.answer("dense", "1", answer="C")
        with pytest.raises(ValueError, match="is being written by another process"):
            AnswerFile(path, {"fps": 1, "model": "a"}, resume=True)
    with pytest.raises(ValueError, match="is there already: --resume goes on"):
        AnswerFile(path, {"fps": 1, "model": "a"}, resume=False)
    with pytest.raises(ValueError, match="begun with another fps: 1 there, 2 now"):
        AnswerFile(path, {"fps": 2, "model": "a"}, resume=True)
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"{", *lines[1:]]))
    with pytest.raises(DataError, match="line 2 is damaged"):
        AnswerFile(path, {"fps": 1, "model": "a"}, resume=True)
    path.write_text(json.dumps({"kind": "answer"}) + "\n")
    with pytest.raises(DataError, match="the first line must be the protocol"):
        read_answers(path)


def test_samples_are_stratified_and_shards_are_everything() -> None:
    tasks = "a" * 60 + "b" * 30 + "c" * 10
    queries = [Query(f"{n}", f"v{n % 7}", 1.0, "?", "?", task) for n, task in enumerate(tasks)]
    chosen = sample(queries, 10)
    assert Counter(query.task for query in chosen) == {"a": 6, "b": 3, "c": 1}
    assert sample(queries, 10) == chosen
    assert sample(queries, None) == queries
    parts = [shard_of(queries, (number, 3)) for number in (1, 2, 3)]
    assert sorted(q.key for part in parts for q in part) == sorted(q.key for q in queries)
    assert not {q.video for q in parts[0]} & {q.video for q in parts[1]}
    assert parse_shard("2/8") == (2, 8)
    for text in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="--shard must be i/n"):
            parse_shard(text)
