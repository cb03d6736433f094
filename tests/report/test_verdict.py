# SPDX-License-Identifier: Apache-2.0
"""What a measurement comes to, in a line, in the JSON and in the colour of the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import browse, needs_browser
from records import record

from stc_video.report import PromiseFacts, run_verdict, write_html, write_json
from stc_video.report.verdict import (
    Compared,
    Tried,
    best_verdict,
    cache_verdict,
    calibration_verdict,
    prune_verdict,
)

NAN = float("nan")


def judge(work: float, time: float | None = None, **rest: object) -> tuple[str, str]:
    found = cache_verdict(frames=10, work=work, time=time, **rest)
    assert "\n" not in found.text
    assert found.text.endswith(".")
    return found.level, found.text


def test_a_run_that_saves_and_holds_its_promise_is_good() -> None:
    assert judge(0.3, 0.45, promised=0.983, measured=0.9871, held=True) == (
        "good",
        "it pays: 45 % of the dense time for 30 % of the work; the promised cosine of 0.983 was "
        "held (0.9871 measured).",
    )


def test_a_run_slower_than_dense_is_bad_and_says_what_to_try() -> None:
    level, text = judge(0.97, 1.17, promised=0.983, measured=0.99, held=True, pruned=True)
    assert level == "bad"
    assert text.startswith("it does not pay: 117 % of the dense time for 97 % of the work; ")
    assert "little repeats from frame to frame" in text
    assert "the pruner saves without it" in text
    level, text = judge(0.4, 1.17)
    assert level == "bad"
    assert "the work saved is less than what it takes to find it" in text
    assert judge(1.05)[0] == "bad"  # audits can make it more work than dense


def test_a_broken_promise_is_bad_however_much_is_saved() -> None:
    level, text = judge(0.01, 0.05, promised=0.983, measured=0.939, held=False)
    assert level == "bad"
    assert text.startswith("it saves, but not as promised: ")
    assert "the promised cosine of 0.983 was missed (0.9390 measured); " in text
    assert "leave the cacher off" in text
    text = judge(1.2, promised=0.983, measured=0.939, held=False)[1]
    assert text.startswith("it does not pay: 120 %")
    assert text.endswith("missed (0.9390 measured); for videos like this leave the cacher off.")


@pytest.mark.parametrize(
    ("figures", "level", "words"),
    [
        ({"work": 0.3}, "good", "30 % of the dense work, no time taken."),
        ({"work": 0.3, "measured": 0.95}, "good", "no cosine was promised, 0.9500 measured."),
        ({"work": 0.3, "promised": 0.983}, "mixed", "was held was not measured."),
        ({"work": 0.97}, "mixed", "it hardly pays: 97 %"),
        ({"work": 0.3, "time": 0.96}, "mixed", "it hardly pays: 96 %"),
        ({"work": 0.3, "random": True}, "good", "no time taken (random weights)."),
    ],
)
def test_what_is_in_between_or_not_known_is_said(figures, level: str, words: str) -> None:
    found = judge(**figures)
    assert found[0] == level
    assert words in found[1]


def test_one_frame_is_no_measurement() -> None:
    found = cache_verdict(frames=1, work=1.0, time=1.0)
    assert (found.level, "one frame says nothing" in found.text) == ("mixed", True)


def test_a_run_is_judged_by_its_references_and_by_the_audits() -> None:
    # The six frames took 0.115 s, dense ones would have taken 0.24 s; 0.98 was measured.
    run = record(6)
    assert run_verdict(run).text == (
        "it pays: 48 % of the dense time for 38 % of the work; no cosine was promised, "
        "0.9800 measured on 3 frames."
    )
    held = replace(run, promise=PromiseFacts(0.97, 4, 0.99, True))
    assert run_verdict(held).level == "good"
    assert "0.97 was held (0.9800 measured on 3 frames)" in run_verdict(held).text
    for promise in (PromiseFacts(0.97, 4, 0.96, False), PromiseFacts(0.983, 4, 0.99, True)):
        assert run_verdict(replace(run, promise=promise)).level == "bad"
    # Without references the audits are all there is.
    bare = replace(
        run,
        frames=tuple(replace(f, similarity=None, dense_seconds=None) for f in run.frames),
        promise=PromiseFacts(0.97, 4, 0.9712, True),
    )
    assert "held (0.9712 by 4 audits)" in run_verdict(bare).text
    assert "no time taken" in run_verdict(bare).text


def test_the_best_setting_of_each_case_is_named() -> None:
    tried = [
        Tried("a", "at 2 fps", 0.3, 0.5, 0.98, 0.985),
        Tried("b", "at 2 fps", 0.2, 0.4, 0.99, 0.985),  # cheaper, but missed
        Tried("a", "at 5 fps", 0.2, 0.3, 0.98, 0.99),
    ]
    found = best_verdict(tried)
    assert found.level == "mixed"
    assert found.text == (
        "at 2 fps: a pays, 50 % of the dense time for 30 % of the work, the promised cosine of "
        "0.98 was held (0.9850 measured); at 5 fps: a pays, 30 % of the dense time for 20 % of "
        "the work, the promised cosine of 0.98 was held (0.9900 measured); the promise was missed "
        "by b (0.9850 at 2 fps)."
    )
    assert best_verdict([tried[0], tried[2]]).level == "good"
    found = best_verdict([tried[1]])
    assert found.level == "bad"
    assert "at 2 fps: b saves, but is not similar enough, 40 % of the dense time" in found.text
    found = best_verdict([tried[1], tried[1]])
    assert "at 2 fps: no setting saves and is similar enough; " in found.text
    assert "leave the cacher off" in found.text


def test_where_nothing_was_promised_what_is_unlike_does_not_pay() -> None:
    assert best_verdict([Tried("stc", "here", 0.2, None, None, 0.9)]).level == "bad"
    assert best_verdict([Tried("stc", "here", 0.2, None, None, 0.985)]).level == "good"
    assert best_verdict([Tried("stc", "here", 0.2)]).level == "good"


def test_a_promise_that_was_held_without_saving_time_is_said() -> None:
    found = best_verdict([Tried("motion", "on the cartoon", 0.72, 0.99, 0.983, 0.9963)])
    assert found.level == "bad"
    assert found.text.startswith(
        "on the cartoon: motion saves no time, 99 % of the dense time for 72 % of the work, the "
        "promised cosine of 0.983 was held (0.9963 measured); "
    )


def test_many_cases_are_counted() -> None:
    tried = [Tried("stc", f"at case {n}", 0.1 * n, 0.2 * n) for n in range(1, 9)]
    found = best_verdict(tried)
    assert found.level == "mixed"
    assert found.text.startswith(
        "it pays in 4 of 8 cases; most at case 1: stc pays, 20 % of the dense time for 10 % of "
        "the work; not at case 5, at case 6 and 2 more; "
    )
    found = best_verdict(tried[:4], ["stc is wrong"])
    assert (found.level, found.text.startswith("stc is wrong; ")) == ("bad", True)
    assert best_verdict([]).level == "mixed"


def test_a_calibration_is_judged_by_the_default_quality() -> None:
    found = calibration_verdict(0.99, 0.983, 0.4)
    assert (found.level, found.text) == (
        "good",
        "cached frames alone reach the default quality of 0.983 at 40 % of the dense work.",
    )  # fmt: skip
    found = calibration_verdict(0.961, 0.983, 0.4)
    assert found.level == "mixed"
    assert "cached frames alone reach 0.961 at 40 % of the dense work" in found.text
    assert calibration_verdict(0.99, 0.983, 1.01).level == "bad"


def test_pruners_are_judged_by_the_controls() -> None:
    control = Compared("uniform", {"a": 0.5, "b": 0.5, "c": NAN}, 0.1)

    def method(a: float, b: float, name: str = "stc") -> Compared:
        return Compared(name, {"a": a, "b": b, "c": NAN}, 0.25)

    found = prune_verdict("at 25 %", [method(0.6, 0.6), method(0.9, 0.4, "dtd")], [control])
    assert found.level == "good"
    assert found.text == (
        "at 25 %, stc is ahead of the controls in 2 of 2 measures (a, b) for 0.25 ms per frame."
    )
    assert prune_verdict("at 25 %", [method(0.6, 0.4)], [control]).level == "mixed"
    assert prune_verdict("at 25 %", [method(0.5, 0.4)], [control]).level == "bad"
    assert "uniform, random" in prune_verdict("at 25 %", [method(0.6, 0.6)], []).text


def test_it_is_in_the_json_and_on_the_page(tmp_path: Path) -> None:
    run = replace(record(6), promise=PromiseFacts(0.99, 3, 0.98, False))
    data = json.loads(write_json(run, tmp_path / "report.json").read_text())
    assert data["verdict"] == {"level": "bad", "text": run_verdict(run).text}
    assert data["promise"] == {"promised": 0.99, "audits": 3, "estimated": 0.98, "held": False}
    html = write_html(run, tmp_path / "report.html").read_text()
    assert f'<p class="verdict bad"><strong>Verdict:</strong> {run_verdict(run).text}' in html
    assert "cosine 0.99: missed, 0.9800 by the audits (3 audits)" in html


@pytest.mark.slow
@needs_browser
def test_each_level_has_a_colour_that_can_be_read(tmp_path: Path) -> None:
    use = """const one = document.querySelector(".verdict"), style = getComputedStyle(one);
    seen.back = style.backgroundColor; seen.text = style.color;
    seen.high = one.getBoundingClientRect().height;"""
    page, colours = tmp_path / "report.html", {}
    for level, promise in [("good", (None, 0, None, None)), ("bad", (0.99, 3, 0.98, False))]:
        run = replace(record(6), promise=PromiseFacts(*promise))
        assert run_verdict(run).level == level
        write_html(run, page)
        seen = browse(page, use, tmp_path)
        assert seen["errors"] == []
        assert seen["high"] > 20
        colours[level] = seen["back"]
        assert contrast(seen["back"], seen["text"]) > 7  # of WCAG's AAA
    assert len(set(colours.values())) == 2


def contrast(first: str, second: str) -> float:
    """The contrast of two colours by WCAG."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

    a, b = sorted((light(first), light(second)))
    return b / a
