# SPDX-License-Identifier: Apache-2.0
"""`stc run --ask`: questions at times of a video."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from stc_video.cli.app import run_app
from stc_video.cli.questions import pair_questions, parse_time
from stc_video.memory import RekvConfig
from stc_video.serve.config import ServeConfig
from stc_video.session import StreamingSession

MODEL = ("--model", "llava-onevision-tiny", "--threads", "1", "--dense-every", "0")
SHORT = ("--max-new-tokens", "8")


def run(*arguments: object) -> int:
    return run_app(["run", *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("12.5", 12.5), ("00:12", 12), ("1:02:03", 3723), ("90:00", 5400), ("end", math.inf)],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_pairs_are_by_rank_and_come_in_the_order_of_their_times() -> None:
    made = pair_questions(["a", "b", "c"], ["00:09", "end"])
    assert [(q.text, q.time) for q in made] == [("a", 9), ("b", math.inf), ("c", math.inf)]
    assert [q.text for q in pair_questions(["late", "early"], ["5", "1"])] == ["early", "late"]


def test_answers_are_in_the_report_and_on_the_terminal(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--ask", "what is at the end?", "--ask", "what <b>came</b> first?")
    options = (*asked, "--at", "end", "--at", "00:01", "--retrieve-tokens", 130, *SHORT)
    assert run(clip, "--fps", 4, *MODEL, *options, "--max-frames", 12, "--out", tmp_path) == 0
    data = json.loads((tmp_path / "report.json").read_text())
    first, last = data["answers"]
    assert (first["question"], first["time"], first["frames"]) == (asked[3], 1.0, 5)
    assert (last["question"], last["frames"]) == (asked[1], 12)
    assert first["time"] < last["time"] == data["frames"][-1]["time"]
    for answer in data["answers"]:
        # 130 tokens are two frames of 64 and a part of a third.
        assert len(answer["retrieved"]) == 3
        assert all(f["index"] < answer["frames"] for f in answer["retrieved"])
        assert all(f["time"] == data["frames"][f["index"]]["time"] for f in answer["retrieved"])
        assert 1 <= answer["tokens"] <= 8
        assert answer["answer"].strip()
        assert answer["seconds"]["first_token"] > 0
        assert answer["seconds"]["generate"] > 0
    assert data["totals"]["seconds"]["prefill"] > 0
    assert data["settings"]["retrieve_tokens"] == 130
    page = (tmp_path / "report.html").read_text()
    assert "what &lt;b&gt;came&lt;/b&gt; first?" in page
    assert page.count('class="thumbnail"') == 6
    printed = capsys.readouterr().out
    notice = "random weights: the answers are noise"
    assert notice in page
    assert notice in " ".join(printed.split())
    assert last["answer"] in printed


def test_what_is_asked_changes_nothing_about_the_encoding(clip: Path, tmp_path: Path) -> None:
    common = (clip, "--fps", 4, "--max-frames", 6, *MODEL)
    run(*common, "--out", tmp_path / "without")
    run(*common, "--ask", "what?", *SHORT, "--out", tmp_path / "with")
    plain, asked = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("without", "with")
    )
    assert plain["answers"] == []
    for a, b in zip(plain["frames"], asked["frames"], strict=True):
        assert (a["kind"], a["encoded"], a["kept"]) == (b["kind"], b["encoded"], b["kept"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--ask", "a", "--at", "soon"],
            "--at must be seconds, mm:ss, hh:mm:ss or end, got 'soon'",
        ),
        (["--ask", "a", "--at", "1", "--at", "2"], "got 2 times for 1 questions"),
        (["--ask", " "], "--ask must be a question"),
        (["--ask", "a", "--at", "1", "--start", "2"], "before --start, which is 2 s, got 1 s"),
        (["--ask", "a", "--at", "01:00"], "within the video, which lasts 6.00 s, got 60 s"),
        (["--ask", "a", "--model", "siglip-base"], "questions need a whole model (LLaVA-OneVision"),
    ],
)
def test_bad_input_is_one_sentence(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments, message: str
) -> None:
    assert run(clip, *MODEL, *arguments, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_questions_need_a_model(clip: Path, tmp_path: Path, capsys) -> None:
    assert run(clip, "--ask", "what?", "--out", tmp_path) == 2
    assert "--ask needs a language model" in capsys.readouterr().err


def test_run_chat_and_serve_answer_from_the_same_kind_of_memory(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories = []
    make = StreamingSession.__init__

    def noting(self: StreamingSession, *arguments, memory, **settings) -> None:
        memories.append(memory)
        make(self, *arguments, memory=memory, **settings)

    monkeypatch.setattr(StreamingSession, "__init__", noting)
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    model = ("--model", "llava-onevision-tiny", "--threads", "1")
    assert run(clip, "--max-frames", 2, *MODEL, "--ask", "what?", *SHORT, "--out", tmp_path) == 0
    assert run_app(["chat", str(clip), *model, "--fast"]) == 0
    memory = RekvConfig()
    assert memories == [memory, memory]
    assert ServeConfig().memory == replace(memory, host_bytes=1 << 30)
