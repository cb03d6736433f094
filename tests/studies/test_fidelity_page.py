# SPDX-License-Identifier: Apache-2.0
"""The page of a fidelity study in a real browser, and what it says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import browse, needs_browser
from dense_clips import dense_clip

from stc_video.loading.vision import LoadedModel
from stc_video.studies.fidelity.page import PAGE, headline, shown_tables
from stc_video.studies.fidelity.settings import CacheSetting, make_grid
from stc_video.studies.fidelity.study import ALL, FidelityStudy, run_study

USE = """
    const choose = (id, value) => {
      by(id).value = value; by(id).dispatchEvent(new Event("change"));
    };
    const points = () => by("pareto").data.slice(1).map((t) => [t.name, t.x, t.customdata.map((d) => d[1])]);
    const front = () => by("pareto").data[0].x;
    await pause(300);
    seen.points = points();
    seen.front = front();
    seen.axis = [by("pareto").layout.xaxis.title.text, by("pareto").layout.yaxis.type];
    seen.frames = by("frames").data.map((t) => [t.name, t.x.length, t.customdata || t.y]);
    choose("one", "1"); await pause(50);
    seen.chosen = by("frames").data[0].name;
    choose("rate", "1"); choose("clip", "2"); choose("measure", "error_worst"); await pause(100);
    seen.other = points();
    seen.otherFrames = by("frames").data.map((t) => t.x.length);
    choose("cost", "time_ratio"); await pause(50);
    seen.times = points();
    seen.timeAxis = by("pareto").layout.xaxis.title.text;
    seen.stars = document.querySelectorAll("tr.front").length;
    document.querySelectorAll("details").forEach((d) => { d.open = true; });
    seen.measures = [...by("measure").options].map((o) => o.value);
"""  # noqa: E501


@pytest.fixture(scope="module")
def study(tiny_model: LoadedModel) -> FidelityStudy:
    clips = [
        dense_clip(tiny_model, name, frames, fps=fps, motion=motion)
        for fps in (2.0, 5.0)
        for name, frames, motion in (("slow", 6, 1), ("fast", 5, 9))
    ]
    grid = make_grid(intervals=[2, 4], qualities=[0.983], thresholds=[0.5, 0.9])
    return run_study(clips, grid, tiny_model)


def with_saliency(study: FidelityStudy) -> FidelityStudy:
    rows = tuple(replace(r, saliency_iou=0.5, saliency_iou_worst=0.25) for r in study.rows)
    return replace(study, rows=rows)


def written(study: FidelityStudy, path: Path) -> Path:
    details = {"Model": [("weights", "none at all")]}
    return PAGE.write(
        study, path / "fidelity.html", command="stc fidelity", created="now", details=details
    )


def by_family(study: FidelityStudy, fps: float, clip: str, x: str, y) -> dict[str, list]:
    found: dict[str, list] = {}
    for row in sorted(study.at(fps, clip), key=lambda row: getattr(row, x)):
        found.setdefault(row.setting.family, []).append((getattr(row, x), y(row)))
    return found


def check(points: list, expected: dict[str, list]) -> None:
    assert {name for name, _, _ in points} == set(expected)
    for name, xs, ys in points:
        assert xs == pytest.approx([x for x, _ in expected[name]])
        assert ys == pytest.approx([y for _, y in expected[name]], abs=1e-9)


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_page_works_and_loads_nothing(study: FidelityStudy, tmp_path: Path, width: int) -> None:
    seen = browse(written(study, tmp_path), USE, tmp_path, width)
    assert seen["errors"] == []
    assert seen["violations"] == []
    assert seen["requests"] == []
    assert seen["console"] == []
    assert seen["wide"] <= 0
    check(seen["points"], by_family(study, 2.0, ALL, "cost", lambda row: row.error))
    assert seen["front"] == pytest.approx(sorted(row.cost for row in study.at(2.0) if row.on_front))
    assert seen["axis"] == ["fraction of the dense multiply-adds", "log"]
    first = study.measured[CacheSetting("motion", quality=0.983), 2.0, "slow"]
    name, count, errors = seen["frames"][0]
    assert (name, count) == ("motion, quality 0.983", 5)
    assert errors == pytest.approx([max(0, 1 - s) for s in first.similarities], abs=1e-6)
    assert seen["frames"][1][1:] == [6, pytest.approx(first.costs, abs=1e-4)]
    assert seen["frames"][2][0] == "stc, interval 2, ratio 1/4"
    assert seen["chosen"] == study.settings[1].name
    worst = by_family(study, 5.0, "fast", "cost", lambda row: max(0, 1 - row.worst_frame))
    check(seen["other"], worst)
    assert seen["otherFrames"] == [4, 5, 4, 5]
    times = by_family(study, 5.0, "fast", "time_ratio", lambda row: max(0, 1 - row.worst_frame))
    check(seen["times"], times)
    assert seen["timeAxis"] == "fraction of the dense time"
    assert seen["stars"] == sum(row.on_front for row in study.rows)
    assert "saliency_iou" not in seen["measures"]


@needs_browser
def test_page_draws_the_overlap_of_what_is_salient(study: FidelityStudy, tmp_path: Path) -> None:
    use = """
    by("measure").value = "saliency_iou";
    by("measure").dispatchEvent(new Event("change"));
    await pause(50);
    seen.axis = by("pareto").layout.yaxis;
    seen.heights = [...new Set(by("pareto").data.slice(1).flatMap((t) => t.y))];
    """
    seen = browse(written(with_saliency(study), tmp_path), use, tmp_path)
    assert seen["errors"] == []
    assert seen["axis"]["title"]["text"] == "saliency IoU"
    assert seen["axis"]["type"] != "log"
    assert seen["heights"] == [0.5]


def test_page_says_what_is_not_measured(study: FidelityStudy, tmp_path: Path) -> None:
    html = written(study, tmp_path).read_text()
    assert headline(study) in html
    assert "not measured here</strong>: no language model runs" in html
    assert "Saliency IoU</strong> is left out" in html
    assert "10 cache settings on 2 clips, 22 frames: at 2 fps " in html
    for setting in study.settings:
        assert f'<th scope="row">{setting.name}</th>' in html
    markup = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", markup)
    with_it = written(with_saliency(study), tmp_path).read_text()
    assert "intersection over union" in with_it


def test_page_without_times(study: FidelityStudy, tmp_path: Path) -> None:
    nothing = float("nan")
    rows = tuple(
        replace(row, time_ratio=nothing, frame_ms=nothing, dense_ms=nothing) for row in study.rows
    )
    untimed = replace(study, rows=rows)
    html = written(untimed, tmp_path).read_text()
    assert "<strong>Time</strong>" not in html
    assert "fraction of the dense time" not in html
    assert "nan" not in "".join(re.findall("<td>.*?</td>", html))
    assert {line[2] for _, _, lines in shown_tables(untimed) for line in lines} == {"-"}


def test_page_escapes_names(study: FidelityStudy, tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    names = {"slow": evil}
    measured = {(s, f, names.get(c, c)): found for (s, f, c), found in study.measured.items()}
    rows = tuple(replace(row, clip=names.get(row.clip, row.clip)) for row in study.rows)
    clips = {names.get(name, name): frames for name, frames in study.clips.items()}
    changed = replace(study, clips=clips, measured=measured, rows=rows, notes=(evil,))
    assert "<script>alert(1)" not in written(changed, tmp_path).read_text()


def test_headline_names_the_cheapest_that_is_similar(study: FidelityStudy) -> None:
    similar = min((r for r in study.at(2.0) if r.similarity >= 0.98), key=lambda row: row.cost)
    assert f"or more is {similar.setting.name} (" in headline(study)
    none = replace(study, rows=tuple(replace(row, similarity=0.5) for row in study.rows))
    assert "at 5 fps none keeps a mean cosine of 0.98." in headline(none)


def test_console_tables_have_a_star_on_the_front(study: FidelityStudy) -> None:
    tables = shown_tables(study)
    assert [title for title, _, _ in tables] == [
        "At 2 fps, means over 2 clips",
        "At 5 fps, means over 2 clips",
    ]
    for (_, header, lines), fps in zip(tables, study.rates, strict=True):
        for line, row in zip(lines, study.at(fps), strict=True):
            shown = dict(zip(header, line, strict=True))
            assert shown["setting"] == row.setting.name
            assert shown["cost"] == f"{row.cost:.3f}"
            assert (shown["front"] == "*") is row.on_front
            assert shown["saliency"] == "-"
