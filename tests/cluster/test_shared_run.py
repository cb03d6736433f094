# SPDX-License-Identifier: Apache-2.0
"""`stc eval --ray`: two nodes share a run, and one that dies costs nothing but time."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from benchmark_files import ovo_choice, write_json
from clip_maker import write_clip
from waiting import wait_for

from stc_video.cli.app import run_app
from stc_video.evaluation.answers import AnswerFile, read_answers
from stc_video.evaluation.configurations import Configuration
from stc_video.evaluation.crew import Crew
from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.runner import Sampling
from stc_video.evaluation.worker import Assignment, Worker

VIDEOS, QUESTIONS = 8, 3
DENSE = Configuration("dense", policy="none", prune="none", memory="plain")
STC = Configuration("stc", policy="motion", tokens_per_frame=6, retrieve_tokens=18)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(VIDEOS):
        write_clip(folder / f"{number}.mp4", 40, rate=4)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        ovo_choice(10 * video + number, video=f"{video}.mp4", realtime=2 + 3 * number)
        for video in range(VIDEOS)
        for number in range(QUESTIONS)
    ]
    return write_json(tmp_path / "o.json", rows)


def assignment(videos: Path, model: Path) -> Assignment:
    sampling = Sampling(fps=2, max_new_tokens=4)
    return Assignment("ovo-bench", videos, [STC], True, sampling, str(model), "cpu", threads=1)


def answers_of(path: Path) -> dict[tuple[str, str], str]:
    """All answers of a file; none may be there twice."""
    entries = [entry for entry in read_answers(path)[1] if entry["kind"] == "answer"]
    found = {(e["configuration"], e["key"]): (e["answer"], e["frames"]) for e in entries}
    assert len(found) == len(entries)
    return found


def test_a_node_that_is_killed_costs_no_answer(
    nodes, videos: Path, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    task, queries = assignment(videos, model_folder), load_queries("ovo-bench", data).queries
    alone = Worker(task)
    with AnswerFile(tmp_path / "alone", alone.facts.protocol, resume=False) as file:
        assert alone.run(queries, file)
    given, killed = [], []

    def note(answer) -> None:
        given.append(answer)
        if len(given) == 1:  # the other node is in the middle of a video
            killed.append(nodes.kill())

    crew = Crew(task, nodes.address)
    import ray

    def dead() -> list[str]:
        return [node["NodeID"] for node in ray.nodes() if not node["Alive"]]

    try:
        assert crew.facts == alone.facts
        with AnswerFile(tmp_path / "shared", crew.facts.protocol, resume=False) as file:
            assert crew.run(queries, file, note)
        wait_for(lambda: killed[0] in dead(), lambda: f"{killed[0]} is not among {dead()}")
    finally:
        crew.close()
    assert crew.lost == []
    whole = answers_of(tmp_path / "alone")
    assert answers_of(tmp_path / "shared") == whole
    assert len(whole) == len(given) == VIDEOS * QUESTIONS * len(crew.facts.configurations)


def kill_workers_that_ask(over: threading.Event) -> None:
    """Kill this test's workers whenever they are at work."""
    mark = f"STC_TESTS={os.getpid()}".encode()
    while not over.wait(0.05):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b".ask" in title and mark in environment:
                os.kill(int(folder.name), signal.SIGKILL)


def test_what_nobody_survives_is_left_and_asked_at_the_next_run(
    nodes, videos: Path, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    task, queries = assignment(videos, model_folder), load_queries("ovo-bench", data).queries
    queries = [query for query in queries if query.video in ("0.mp4", "1.mp4")]
    path, over = tmp_path / "a", threading.Event()
    killer = threading.Thread(target=kill_workers_that_ask, args=(over,))
    crew = Crew(task, nodes.address)
    try:
        with AnswerFile(path, crew.facts.protocol, resume=False) as file:
            killer.start()
            assert not crew.run(queries, file)
            assert crew.lost
            over.set()
            killer.join()
        with AnswerFile(path, crew.facts.protocol, resume=True) as file:
            assert crew.run(queries, file)
    finally:
        over.set()
        crew.close()
    assert len(answers_of(path)) == len(queries) * len(crew.facts.configurations)


def test_the_command(nodes, videos: Path, data: Path, model_folder: Path, tmp_path: Path) -> None:
    paths = ("--data", data, "--videos", videos, "--model", model_folder)
    small = ("--tokens-per-frame", 6, "--max-new-tokens", 2, "--threads", 1, "--controls")
    found = []
    for out, more in ((tmp_path / "one", ()), (tmp_path / "many", ("--ray", nodes.address))):
        arguments = ("eval", "ovo-bench", *paths, *small, "--out", out, *more)
        assert run_app([str(argument) for argument in arguments]) == 0
        report = json.loads((out / "evaluation.json").read_text())
        found.append((report["configurations"][0]["scores"], answers_of(out / "answers.jsonl")))
        assert (out / "evaluation.html").is_file()
    assert found[0] == found[1]


def test_bad_input_is_one_sentence(nodes, videos, data, model_folder, tmp_path, capsys) -> None:
    def fails(model: object, *more: object) -> str:
        paths = ("--data", data, "--videos", videos, "--model", model, "--out", tmp_path / "out")
        assert run_app([str(word) for word in ("eval", "ovo-bench", *paths, *more)]) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1
        return error

    address = ("--ray", nodes.address)
    assert "there is no such folder" in fails(tmp_path / "none", *address)
    assert "must be auto, cpu or cuda with --ray" in fails(model_folder, *address, "--device", "x")
    assert "needs 1 GPU, the cluster has 0" in fails(model_folder, *address, "--device", "cuda")
    assert "needs 9 CPU, the cluster has 2" in fails(model_folder, *address, "--threads", 9)
    assert "there is no such cluster (" in fails(model_folder, "--ray", "127.0.0.1:9")
    assert "it must be auto, local or HOST:PORT" in fails(model_folder, "--ray", "here")
