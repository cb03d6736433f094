# SPDX-License-Identifier: Apache-2.0
"""The page of a prune study in a real browser, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import browse, needs_browser
from study_clips import clip

from stc_video.studies.pruning.methods import find_methods
from stc_video.studies.pruning.page import PAGE, headline
from stc_video.studies.pruning.study import PruneStudy, run_study

NAMES = ["stc", "dtd", "evs-clip", "visionzip", "tome", "uniform", "random"]

USE = """
    const tile = (n) => by("masks").children[n];
    const pixel = (n, x, y) => {
      const c = tile(n).querySelector("canvas");
      return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data];
    };
    const choose = (id, value) => {
      by(id).value = value; by(id).dispatchEvent(new Event("change"));
    };
    const values = (id) => by(id).data.map((t) => [t.name, t.y[0]]);
    await pause(300);
    seen.start = by("position").textContent;
    seen.captions = [...by("masks").children].map((f) => f.querySelector("figcaption").textContent);
    seen.pareto = values("pareto");
    seen.lines = by("budgets").data.map((t) => [t.name, t.x.length]);
    key("ArrowRight"); await pause(50);
    seen.stepped = by("position").textContent;
    const middle = (i) => [(i % 5 + .5) / 5, (Math.floor(i / 5) + .5) / 4];
    seen.shades = [...Array(20).keys()].map((i) => pixel(2, ...middle(i))[0]);
    choose("budget", "2"); await pause(100);
    seen.fewer = [...by("masks").children].map((f) => f.querySelector("figcaption").textContent);
    choose("measure", "salient_kept"); await pause(50);
    seen.axis = by("pareto").layout.yaxis.title.text;
    choose("clip", "2"); await pause(100);
    seen.other = by("position").textContent;
    seen.otherPareto = values("pareto");
    const slider = by("slider");
    slider.value = 3; slider.dispatchEvent(new Event("input"));
    seen.slid = by("position").textContent;
    by("play").click(); await pause(800);
    seen.played = by("position").textContent;
    by("play").click();
"""


@pytest.fixture(scope="module")
def study() -> PruneStudy:
    clips = [clip("one"), clip("two", 5, seed=1)]
    return run_study(clips, find_methods(NAMES), [10.0, 25.0, 12.5], repeats=1)


def written(study: PruneStudy, path: Path) -> Path:
    details = {"Model": [("weights", "none at all")]}
    return PAGE.write(
        study, path / "study.html", command="stc prune-study", created="now", details=details
    )


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_page_works_and_loads_nothing(study: PruneStudy, tmp_path: Path, width: int) -> None:
    seen = browse(written(study, tmp_path), USE, tmp_path, width)
    assert seen["errors"] == []
    assert seen["violations"] == []
    assert seen["requests"] == []
    assert seen["console"] == []
    assert seen["wide"] <= 0
    assert seen["start"].startswith("2 / 6")
    assert seen["captions"][0].startswith("the frame")
    assert seen["captions"][1:3] == ["stc 5 of 20", "dtd 5 of 20"]
    rows = {row.method: row for row in study.at(25.0)}
    points = dict(seen["pareto"][1:])
    assert points == {name: pytest.approx(rows[name].explained_mean) for name in NAMES}
    assert seen["lines"] == [[name, 3] for name in NAMES]
    assert seen["stepped"].startswith("3 / 6")
    # What is dimmed in the picture of `dtd` is what it dropped.
    keep = study.keeps["dtd", 25.0, "one"][2].tolist()
    bright = min(s for s, kept in zip(seen["shades"], keep, strict=True) if kept)
    assert bright > 30 + max(s for s, kept in zip(seen["shades"], keep, strict=True) if not kept)
    assert seen["fewer"][1] == "stc 2 of 20"
    assert seen["axis"] == "salient that are kept"
    assert seen["other"].endswith("1.0 s")
    other = {row.method: row.salient_kept for row in study.at(10.0, "two")}
    assert dict(seen["otherPareto"][1:]) == {n: pytest.approx(other[n]) for n in NAMES}
    assert seen["slid"].startswith("4 / 5")
    assert not seen["played"].startswith("4 / 5")


def test_page_says_what_is_not_measured(study: PruneStudy, tmp_path: Path) -> None:
    html = written(study, tmp_path).read_text()
    assert headline(study) in html
    assert "not measured here</strong>: no language model runs" in html
    assert "7 methods at 3 budgets on 2 clips, 11 frames" in html
    for name in NAMES:
        assert f'<th scope="row">{name}<small>' in html
    markup = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", markup)


def test_page_escapes_names(study: PruneStudy, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    first = replace(study.clips[0], name=evil)
    keeps = {(m, b, evil if c == "one" else c): keep for (m, b, c), keep in study.keeps.items()}
    rows = tuple(replace(r, clip=evil) if r.clip == "one" else r for r in study.rows)
    changed = replace(study, clips=(first, study.clips[1]), keeps=keeps, rows=rows, notes=(evil,))
    assert "<script>alert(1)" not in written(changed, tmp_path).read_text()


def test_one_frame_and_one_method(tmp_path: Path) -> None:
    small = run_study([clip("still", 1)], find_methods(["uniform"]), [100.0], repeats=1)
    html = written(small, tmp_path).read_text()
    assert "1 method at 1 budget on 1 clip, 1 frame" in html
