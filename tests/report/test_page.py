# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no script error, no request, and the controls work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from browser import browse, needs_browser
from records import answer, record

from stc_video.report import write_html

pytestmark = needs_browser

# Uses the page and notes what it shows.
USE = """
    const facts = () => by("facts").textContent;
    const pixel = (x, y) => {
      const c = by("picture");
      return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data];
    };
    seen.opened = by("position").textContent;  // on the first cached frame
    key("ArrowLeft");
    seen.first = facts();
    key("ArrowRight"); key("ArrowRight"); key("ArrowLeft");
    await pause(300);
    seen.second = facts();
    seen.position = by("position").textContent;
    seen.line = by("curves").layout.shapes[0].x0;
    seen.dropped = pixel(0.97, 0.97);
    by("layer-dropped").click(); await pause(50);
    seen.clear = pixel(0.97, 0.97);
    by("layer-encoded").click(); await pause(50);
    const slider = by("slider");
    slider.value = 4; slider.dispatchEvent(new Event("input"));
    seen.fifth = facts();
    by("curves").emit("plotly_click", {points: [{x: 1.51}]});
    seen.clicked = by("position").textContent;
    by("play").click(); await pause(600);
    seen.played = by("position").textContent;
    by("play").click();
    const thumb = document.querySelector(".thumbnail:last-child");
    if (thumb) {
      seen.thumbs = [...document.querySelectorAll(".thumbnail img")].map((i) => i.naturalWidth);
      thumb.click();
      seen.retrieved = by("position").textContent;
    }
    seen.traces = by("curves").data.map((t) => t.name);
    seen.stages = by("stages").data.map((t) => [t.name, t.type || "scatter"]);
"""


def test_page_works_and_loads_nothing(tmp_path: Path) -> None:
    seen = browse(write_html(record(6), tmp_path / "report.html"), USE, tmp_path)
    assert seen["errors"] == []
    assert seen["violations"] == []
    assert seen["requests"] == []
    assert seen["console"] == []
    assert seen["opened"].startswith("2 / 6")
    assert "first frame of the stream" in seen["first"]
    assert "3 of 12 tokens changed" in seen["second"]
    assert "0.9800" in seen["second"]
    assert seen["position"].startswith("2 / 6")
    assert seen["line"] == 0.5
    assert sum(seen["clear"][:3]) > sum(seen["dropped"][:3]) + 60
    assert "2.00 s" in seen["fifth"]
    assert "not measured here" in seen["fifth"]
    assert seen["clicked"].startswith("4 / 6")
    assert not seen["played"].startswith("4 / 6")
    assert set(seen["traces"]) == {"encoded anew", "work", "tokens kept", "similarity"}
    assert ["tower", "bar"] in seen["stages"]
    assert ["dense reference of the tower (separate)", "scatter"] in seen["stages"]
    assert seen["wide"] <= 0


def test_answers_show_their_frames_and_lead_to_them(tmp_path: Path) -> None:
    run = record(6, answers=(answer(4, 0, 1, 3), answer(6)))
    seen = browse(write_html(run, tmp_path / "report.html"), USE, tmp_path)
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert seen["thumbs"] == [112, 112, 112]
    assert seen["retrieved"].startswith("4 / 6")
    assert seen["wide"] <= 0


def test_page_without_pruning_reference_or_pictures(tmp_path: Path) -> None:
    run = record(3, keep=None)
    bare = tuple(
        replace(f, similarity=None, similarity_worst=None, dense_seconds=None, picture=b"")
        for f in run.frames
    )
    seen = browse(write_html(replace(run, frames=bare), tmp_path / "report.html"), USE, tmp_path)
    # The script above asks for a frame that a run of three has not: the page stays at its last.
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert set(seen["traces"]) == {"encoded anew", "work", "tokens kept"}


def test_page_fits_a_narrow_window(tmp_path: Path) -> None:
    seen = browse(write_html(record(6), tmp_path / "report.html"), USE, tmp_path, width=500)
    assert seen["errors"] == []
    assert seen["wide"] <= 0


def test_page_of_a_run_without_frames(tmp_path: Path) -> None:
    seen = browse(write_html(record(0), tmp_path / "report.html"), USE, tmp_path)
    # There is no player to use, so the script stops at its first control; nothing else fails.
    assert [e for e in seen["errors"] if "reading 'textContent'" not in e] == []
