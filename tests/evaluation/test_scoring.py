# SPDX-License-Identifier: Apache-2.0
"""Scores against hand-made answers, and against official formulas worked out by hand."""

from __future__ import annotations

import math

import pytest

from stc_video.evaluation.loaders import BENCHMARKS
from stc_video.evaluation.queries import Proactive, Query
from stc_video.evaluation.scoring import compare, count, is_right, scores
from stc_video.evaluation.scoring.parsers import submitted_letter
from stc_video.evaluation.scoring.table import Given

FOUR = ("red", "green", "blue", "grey")


def query(gold: str = "B", kind: str = "choice", key: str = "q", **fields) -> Query:
    return Query(key=key, time=1.0, question="?", prompt="?", gold=gold, kind=kind,
                 **{"video": "v", "task": "t", "choices": FOUR, **fields})  # fmt: skip


def verdict(benchmark: str, answer: str | None, parser: str, **fields) -> bool | None:
    return is_right(benchmark, query(**fields), answer, None, parser)


# answer; whether it is B by: OVO-Bench, StreamingBench, MLVU, EgoSchema, Video-MME, ReKV; strict
CHOICES = [
    ("B", True, True, True, True, True, True, True),
    ("(B)", True, False, False, True, True, True, True),
    ("B) green", True, True, True, True, True, True, True),
    ("B. green", True, True, False, True, True, True, True),
    ("Answer: B", True, False, False, False, False, False, True),
    ("The best answer is B", True, False, False, False, True, False, True),
    ("b", False, False, False, False, False, False, False),
    ("Because it is", True, True, False, True, True, True, False),
    ("A or B", True, False, False, False, False, False, False),
    ("BD", True, True, False, True, True, True, False),
    ("", False, None, False, False, False, False, False),
    (None, False, False, False, False, False, False, False),
]  # fmt: skip
ORDER = ("ovo-bench", "streamingbench", "mlvu", "egoschema", "video-mme", "rekv")


@pytest.mark.parametrize("row", CHOICES, ids=lambda row: repr(row[0]))
def test_choices(row) -> None:
    answer, *expected, strict = row
    found = [verdict(name, answer, "official") for name in ORDER]
    assert found == expected
    assert {verdict(name, answer, "strict") for name in ORDER} == {strict}


def test_answer_b_is_also_a_by_the_rule_of_ovo_bench() -> None:
    assert verdict("ovo-bench", "Answer: B", "official", gold="A")
    assert not verdict("ovo-bench", "Answer: B", "strict", gold="A")


def test_what_cannot_be_read_is_the_first_option_of_egoschema() -> None:
    assert verdict("egoschema", "I cannot tell", "official", gold="A")
    assert not verdict("egoschema", "I cannot tell", "strict", gold="A")
    assert [submitted_letter(text) for text in ("C", "(D) x", "", None, "Zebra")] == [
        "C", "D", "A", "A", "A"]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "official", "strict"),
    [("3", True, True), ("3 times", True, True), ("three", False, False), ("1 and 2", False, False),
     ("03", False, True), ("3 of 4", False, False), ("3.0", False, False), ("", False, False)],
)  # fmt: skip
def test_counts(answer: str, official: bool, strict: bool) -> None:
    fields = {"gold": "3", "kind": "count"}
    assert verdict("ovo-bench", answer, "official", **fields) == official
    assert verdict("ovo-bench", answer, "strict", **fields) == strict


def test_digits_are_joined_by_the_rule_of_ovo_bench() -> None:
    assert verdict("ovo-bench", "1 or 2", "official", gold="12", kind="count")


@pytest.mark.parametrize(
    ("answer", "yes_official", "no_official", "yes_strict", "no_strict"),
    [
        ("Yes", True, False, True, False),
        ("No.", False, True, False, True),
        ("N", False, True, False, False),
        ("yes", False, False, True, False),
        ("No, yes", False, True, False, False),
        ("No, Yes", True, True, False, False),
        ("Not yet", False, True, False, False),
        ("", False, False, False, False),
    ],
)
def test_yes_and_no(answer, yes_official, no_official, yes_strict, no_strict) -> None:
    for parser, gold, expected in [
        ("official", "Yes", yes_official),
        ("official", "No", no_official),
        ("strict", "Yes", yes_strict),
        ("strict", "No", no_strict),
    ]:
        assert verdict("ovo-bench", answer, parser, gold=gold, kind="yes_no") == expected


@pytest.mark.parametrize(
    ("answer", "time", "right"),
    [("GO", 8.0, True), ("It says GO!", 12.0, True), ("GO", 7.9, False), ("GO", 12.5, False),
     ("stop", 10.0, False), ("", 10.0, False), (None, None, False)],
)  # fmt: skip
def test_proactive_answers(answer, time, right: bool) -> None:
    asked = query("GO", "proactive", choices=(), proactive=Proactive("now?", 2.0, 14.0, 10.0))
    for parser in ("official", "strict"):
        assert is_right("streamingbench", asked, answer, time, parser) == right


def test_what_could_not_be_asked_is_wrong_and_what_has_no_public_answer_does_not_count() -> None:
    for name in BENCHMARKS:
        assert is_right(name, query(problem="no options"), None, None, "official") is False
        assert is_right(name, query(kind="open"), "B", None, "official") is None


def table(benchmark: str, rows: list[tuple[str, str, str]], parser: str = "official"):
    """Score rows of (task, video, answer), of which B is right."""
    queries = [query(key=str(i), task=t, video=v) for i, (t, v, _) in enumerate(rows)]
    answers = {str(i): Given(answer) for i, (_, _, answer) in enumerate(rows)}
    return count(benchmark, queries, answers, parser)


def by_name(benchmark: str, counts) -> dict[str, float | None]:
    return {score.column: score.value for score in scores(benchmark, counts)}


def test_ovo_bench_by_hand() -> None:
    counts = table("ovo-bench", [
        ("EPM", "a", "B"), ("EPM", "a", "C"), ("EPM", "b", "C"), ("EPM", "b", "C"),  # 1/4
        ("ASI", "a", "B"),  # 1/1
        ("OCR", "a", "B"), ("OCR", "b", "C"),  # 1/2
        ("CRR", "b", "C"), ("CRR", "b", "C"),  # 0/2
    ])  # fmt: skip
    found = by_name("ovo-bench", counts)
    assert found["EPM"] == 0.25
    assert found["HLD"] is None
    assert found["Backward"] == pytest.approx((0.25 + 1) / 2)
    assert found["Real-time"] == 0.5
    assert found["Forward"] == 0
    assert found["Total"] == pytest.approx((0.625 + 0.5 + 0) / 3)
    assert found["RT+Back"] == pytest.approx((0.625 + 0.5) / 2)
    assert found["12 tasks"] == pytest.approx((0.25 + 1 + 0.5 + 0) / 4)
    assert found["micro"] == pytest.approx(3 / 9)


def test_mlvu_is_averaged_over_tasks_and_over_questions() -> None:
    counts = table("mlvu", [("plotQA", "a", "B")] * 3 + [("count", "a", "C"), ("count", "a", "B")])
    found = by_name("mlvu", counts)
    assert found["M-Avg"] == pytest.approx((1 + 0.5) / 2)
    assert found["micro"] == pytest.approx(4 / 5)


def test_streaming_bench_leaves_empty_answers_out_and_strict_scores_do_not() -> None:
    rows = [("Counting", "a", "B"), ("Counting", "a", ""), ("Event Understanding", "a", "C")]
    official = by_name("streamingbench", table("streamingbench", rows))
    assert (official["Counting"], official["Real-time"]) == (1.0, 0.5)
    strict = by_name("streamingbench", table("streamingbench", rows, "strict"))
    assert (strict["Counting"], strict["Real-time"]) == (0.5, pytest.approx(1 / 3))


def test_a_question_without_an_answer_is_wrong() -> None:
    queries = [query(key="1"), query(key="2")]
    counts = count("rekv", queries, {"1": Given("B")}, "official")
    assert by_name("rekv", counts)["micro"] == 0.5


def test_tasks_that_a_benchmark_does_not_know_have_a_column() -> None:
    found = by_name("rekv", table("rekv", [("why", "a", "B"), ("how", "a", "C")]))
    assert found == {"why": 1.0, "how": 0.0, "micro": 0.5}


def test_retention_gained_and_lost() -> None:
    videos = [f"v{number}" for number in range(40)]
    dense = table("rekv", [("t", v, "B") for v in videos] + [("t", v, "C") for v in videos])
    ours = table("rekv", [("t", v, "B" if n % 4 else "C") for n, v in enumerate(videos)]
                 + [("t", v, "B" if n < 4 else "C") for n, v in enumerate(videos)])  # fmt: skip
    found = compare("rekv", ours, dense)
    assert (found.gained, found.lost) == (4, 10)
    assert found.retention == pytest.approx(34 / 40)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 34 / 40 < found.high
    # Per video 30 of 40 keep 1 of 1, and 4 gain one: the standard error of the mean is about 0.083.
    assert math.isclose(found.high - found.low, 4 * 0.083, rel_tol=0.2)
    same = compare("rekv", dense, dense)
    assert (same.retention, same.low, same.high, same.gained, same.lost) == (1, 1, 1, 0, 0)


def test_the_interval_is_over_videos_and_not_over_questions() -> None:
    rows = [("t", video, answer) for video, answer in (("a", "B"), ("b", "C")) for _ in range(50)]
    dense = table("rekv", [("t", video, "B") for _, video, _ in rows])
    found = compare("rekv", table("rekv", rows), dense)
    assert (found.low, found.high) == (0.0, 1.0)  # two videos, however many questions


def test_no_interval_where_dense_may_have_nothing_right() -> None:
    ours = table("rekv", [("t", "a", "B"), ("t", "b", "B")])
    dense = table("rekv", [("t", "a", "B"), ("t", "b", "C")])
    found = compare("rekv", ours, dense)
    assert (found.retention, found.low, found.high) == (2.0, None, None)
