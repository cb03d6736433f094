# SPDX-License-Identifier: Apache-2.0
"""The commands with a saved model of every family: what they do, or one sentence."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_video_llm_sessions import writer_of
from tiny_video_llms import make_model, model_names

for _folder in ("video", "evaluation"):
    sys.path.append(str(Path(__file__).parents[1] / _folder))

# ruff: noqa: E402
from benchmark_files import ovo_choice, write_json
from clip_maker import write_clip

from stc_video import UnsupportedModelError, WindowConfig
from stc_video.cli.app import run_app
from stc_video.loading.video_llm import load_chat_model
from stc_video.serve.config import ServeConfig
from stc_video.serve.hub import StreamHub

NAMES = [name for name in model_names() if "moe" not in name]
#: memories that a family cannot have, with what is said
NO_REKV = "memory must be plain or window for Qwen3.5, got rekv; refused there are"


@pytest.fixture(scope="module", params=NAMES)
def family(request, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    make_model(request.param).save_pretrained(folder)
    writer_of(request.param).save_pretrained(folder)
    return request.param, folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("videos") / "clip.mp4", 8, rate=4)


@pytest.fixture
def stc(capsys) -> Callable[..., tuple[int, str]]:
    def call(*words: object) -> tuple[int, str]:
        code = run_app([str(word) for word in (*words, "--threads", 1)])
        said = capsys.readouterr()
        if code == 2:
            assert len(said.err.strip().splitlines()) == 1
        return code, said.err if code == 2 else said.out

    return call


def refusal(name: str, memory: str) -> str:
    """What is said of a memory; empty if the family has it."""
    return NO_REKV * ((name, memory) == ("qwen3.5", "rekv"))


@pytest.mark.parametrize("memory", ["rekv", "window"])
def test_chat(stc, family, clip, monkeypatch, memory) -> None:
    name, folder = family
    monkeypatch.setattr("sys.stdin", io.StringIO("/wait\nwhat is it?\n/quit\n"))
    options = ("--fast", "--memory", memory, "--tokens-per-frame", 2, "--max-new-tokens", 4)
    code, said = stc("chat", clip, "--model", folder, *options)
    if refused := refusal(name, memory):
        assert code == 2
        assert refused in said
        return
    assert code == 0
    assert "frames seen, answered from" in said


@pytest.mark.parametrize("option", [("--retrieve-tokens", 99), ("--storage", "int8")])
@pytest.mark.parametrize("memory", ["plain", "window"])
def test_what_only_rekv_has_is_refused_with_another_memory(stc, clip, memory, option) -> None:
    for command in (("chat", clip), ("serve",)):
        code, said = stc(*command, "--model", "llava-onevision-tiny", "--memory", memory, *option)
        assert code == 2
        assert f"belongs to --memory rekv, not to {memory}" in said


@pytest.mark.parametrize("memory", ["rekv", "window"])
def test_eval(stc, family, clip, tmp_path, memory) -> None:
    name, folder = family
    rows = [ovo_choice(n, video=clip.name, realtime=1 + 0.5 * n) for n in range(2)]
    data, out = write_json(tmp_path / "o.json", rows), tmp_path / "out"
    given = ("--data", data, "--videos", clip.parent, "--model", folder, "--out", out)
    small = ("--memory", memory, "--tokens-per-frame", 2, "--max-new-tokens", 2)
    code, said = stc("eval", "ovo-bench", *given, *small)
    if refused := refusal(name, memory):
        assert code == 2
        assert refused in said
        return
    assert code == 0
    assert (out / "evaluation.html").is_file()
    assert (out / "answers.jsonl").read_text().count('"kind": "answer"') == 2


def test_serve(family) -> None:
    """A service asks for a memory before it listens; with one it answers."""
    name, folder = family
    chat = load_chat_model(folder)
    for config in (
        ServeConfig(tokens_per_frame=2),
        ServeConfig(memory=WindowConfig(), prune="none"),
    ):
        if refused := refusal(name, chat_memory(config)):
            with pytest.raises(UnsupportedModelError, match=refused):
                StreamHub(chat, config, lambda seconds: None)
            assert not hasattr(chat.model, "stc")
            continue
        hub = StreamHub(chat, config, lambda seconds: None)
        hub.close()


def chat_memory(config: ServeConfig) -> str:
    return "window" if isinstance(config.memory, WindowConfig) else "rekv"


def test_commands_of_towers(stc, family, clip, tmp_path) -> None:
    _, folder = family
    given = (clip, "--model", folder, "--fps", 2)
    for words in (
        ("run", *given, "--tokens-per-frame", 2, "--out", tmp_path / "run"),
        ("calibrate", *given, "--out", tmp_path / "c.json"),
        ("fidelity", *given, "--policies", "stc", "--out", tmp_path / "f"),
        (
            "prune-study",
            *given,
            "--methods",
            "stc,uniform",
            "--budgets",
            10,
            "--out",
            tmp_path / "p",
        ),
    ):
        code, said = stc(*words)
        assert code == 0, said


def test_questions_of_a_run(stc, family, clip, tmp_path) -> None:
    name, folder = family
    small = ("--tokens-per-frame", 2, "--max-new-tokens", 2, "--out", tmp_path)
    code, said = stc("run", clip, "--model", folder, "--ask", "what?", "--at", 1, *small)
    if refused := refusal(name, "rekv"):
        assert code == 2
        assert refused in said
        return
    assert code == 0, said
    [answer] = json.loads((tmp_path / "report.json").read_text())["answers"]
    assert answer["frames"] > 0
