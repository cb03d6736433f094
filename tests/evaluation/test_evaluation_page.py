# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: its verdicts, and the page in a real browser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from benchmark_files import ovo_choice, write_json

from stc_video.evaluation.answers import AnswerFile
from stc_video.evaluation.configurations import Configuration, described
from stc_video.evaluation.loaders import load_queries
from stc_video.evaluation.page import _in_words, headline, score_rows, verdict, write_report
from stc_video.evaluation.queries import DataError
from stc_video.evaluation.results import Results, gather

sys.path.append(str(Path(__file__).parents[1] / "report"))  # browser
NAMES = ("ours", "dense", "last 4 frames")
COST = {"frames": 4, "tokens_kept": 256, "tokens_seen": 784, "work": 0.5,
        "seconds": dict.fromkeys(("decode", "encode", "prune", "prefill", "retrieve", "generate"),
                                 0.25)}  # fmt: skip


def results(
    folder: Path,
    wrong: dict[str, int],
    *,
    random: bool = False,
    rows: int = 40,
    said: str = "</script><b>A",
) -> Results:
    """Every question is in a video of its own; of each configuration the first ones are wrong."""
    content = [ovo_choice(n, ("EPM", "OCR")[n % 2], video=f"{n:03}.mp4") for n in range(rows)]
    questions = load_queries("ovo-bench", write_json(folder / "o.json", content))
    configurations = described([Configuration(name) for name in wrong])
    protocol = {"configurations": configurations, "model": {"random": random}, "left_open": ""}
    path = folder / "answers.jsonl"
    with AnswerFile(path, protocol, resume=False) as answers:
        for name, count in wrong.items():
            for n, query in enumerate(questions.queries):
                answers.answer(
                    name, query.key, answer="C" if n >= count else said, time=None,
                    problem="", note="", frames=4, context_tokens=100, seconds={},
                    retrieved=[[0, 0.0, 3]],
                )  # fmt: skip
                answers.video_done(name, query.video, **COST)
    return gather(questions, questions.queries, [path], {"torch": "2"})


@pytest.mark.parametrize(
    ("wrong", "level", "text"),
    [
        ({"ours": 0, "dense": 0}, "good", "100.0 % of the dense accuracy is kept (95 % interval"),
        ({"ours": 2, "dense": 0}, "mixed", "95.0 % of the dense accuracy"),
        ({"ours": 20, "dense": 0}, "bad", "50.0 % of the dense accuracy"),
        ({"ours": 0, "dense": 0, "last 4 frames": 0}, "mixed", "A control is no worse: last 4"),
        ({"ours": 0}, "mixed", "without --controls nothing says"),
    ],
)
def test_verdicts(tmp_path: Path, wrong, level: str, text: str) -> None:
    made = verdict(results(tmp_path, wrong))
    assert made.level == level
    assert text in made.text


def test_random_weights_say_nothing(tmp_path: Path) -> None:
    made = verdict(results(tmp_path, {"ours": 0, "dense": 0}, random=True))
    assert made.level == "mixed"
    assert "only that everything runs" in made.text


def test_numbers(tmp_path: Path) -> None:
    made = results(tmp_path, {"ours": 10, "dense": 4})
    ours = made.data["configurations"][0]
    assert ours["cost"]["encode_ms_per_frame"] == pytest.approx(1000 * 0.25 / 4)
    assert ours["cost"]["work"] == 0.5
    assert ours["against_dense"]["official"]["lost"] == 6
    header, rows = score_rows(made, "official")
    assert rows[0][header.index("Total")] == "75.0"
    assert headline(made).startswith("ovo-bench: 75.0 % (Total) by ours, 83.3 % of the dense")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "none", "prune": "none", "memory": "plain"},
         "all frames dense, all tokens, memory plain"),
        ({"quality": 0.95, "tokens_per_frame": 6, "memory": "window"},
         "policy motion-q0.95, pruner stc-6, memory window-4"),
        ({"name": "ours"}, "ours"),
    ],
)  # fmt: skip
def test_a_configuration_is_put_in_words(settings, words: str) -> None:
    (one,) = described([Configuration(**settings)])
    assert _in_words({"name": one["name"], "settings": one}) == words


def test_empty_answers_are_counted_and_named(tmp_path: Path) -> None:
    made = results(tmp_path, {"ours": 2}, said="")
    ours = made.data["configurations"][0]
    assert [(p["kind"], p["count"]) for p in ours["problems"]] == [("empty answer", 2)]
    micro = next(s for s in ours["scores"]["official"] if s["column"] == "micro")
    assert (micro["right"], micro["total"]) == (38, 40)
    page = write_report(made, tmp_path / "page.html", videos=tmp_path, command="x", created="y")
    assert "empty answer" in page.read_text()


def test_files_of_two_protocols_are_refused(tmp_path: Path) -> None:
    results(tmp_path, {"ours": 0}, rows=2)
    questions = load_queries("ovo-bench", tmp_path / "o.json")
    with AnswerFile(tmp_path / "answers-2.jsonl", {"configurations": []}, resume=False):
        pass
    with pytest.raises(DataError, match="under another protocol"):
        gather(questions, questions.queries, sorted(tmp_path.glob("*.jsonl")), {})
    (tmp_path / "copy.jsonl").write_bytes((tmp_path / "answers.jsonl").read_bytes())
    twice = [tmp_path / "answers.jsonl", tmp_path / "copy.jsonl"]
    with pytest.raises(DataError, match="0 has two answers by ours"):
        gather(questions, questions.queries, twice, {})


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    from browser import CHROMIUM, browse

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    made = results(tmp_path, dict(zip(NAMES, (10, 4, 20), strict=True)))
    page = write_report(made, tmp_path / "evaluation.html", videos=tmp_path, command="stc eval",
                        created="today")  # fmt: skip
    use = """
      await pause(300);
      seen.tasks = by("tasks").data.map((t) => [t.name, t.x, t.y]);
      seen.points = by("encode").data[0].text;
      seen.wrong = document.querySelectorAll(".answer").length;
    """
    seen = browse(page, use, tmp_path)
    assert seen["errors"] == []
    assert seen["violations"] == []
    assert seen["tasks"][0] == ["ours", ["EPM", "OCR"], [75, 75]]
    assert seen["points"] == list(NAMES)
    assert seen["wrong"] == 10
