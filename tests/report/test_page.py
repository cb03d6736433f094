# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no script error, no request, and the controls work."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from records import answer, record

from stc_video.report import write_html

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")

# Runs before everything else on the page.
WATCH = """<script>
window.seen = {errors: [], violations: []};
addEventListener("error", (e) => seen.errors.push(String(e.message)));
addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => seen.violations.push(e.blockedURI));
</script>"""

# Runs after everything else: uses the page and notes what it shows.
USE = """<script>
addEventListener("load", async () => {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  const by = (id) => document.getElementById(id);
  const key = (key) =>
    document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
  const facts = () => by("facts").textContent;
  const pixel = (x, y) => {
    const c = by("picture");
    return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data];
  };
  try {
    await pause(200);
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
    seen.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  } catch (error) { seen.errors.push(String(error.stack)); }
  seen.requests = performance.getEntriesByType("resource").map((r) => r.name)
    .filter((name) => !name.startsWith("data:"));
  const out = document.createElement("pre");
  out.id = "seen"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
</script>"""


def browse(page: Path, tmp_path: Path, width: int = 1280) -> dict:
    """Open a page in headless Chromium and return what the script above saw."""
    text = page.read_text().replace("<head>", "<head>" + WATCH, 1)
    watched = tmp_path / "watched.html"
    watched.write_text(text.replace("</body>", USE + "</body>"))
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1400",
            "--virtual-time-budget=15000",
            "--dump-dom",
            watched.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    seen: dict = json.loads(html.unescape(found[1]))
    seen["console"] = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # The script above reads single pixels, which the browser finds slow.
    seen["console"] = [line for line in seen["console"] if "getImageData" not in line]
    return seen


def test_page_works_and_loads_nothing(tmp_path: Path) -> None:
    seen = browse(write_html(record(6), tmp_path / "report.html"), tmp_path)
    assert seen["errors"] == []
    assert seen["violations"] == []
    assert seen["requests"] == []
    assert seen["console"] == []
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
    seen = browse(write_html(run, tmp_path / "report.html"), tmp_path)
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
    seen = browse(write_html(replace(run, frames=bare), tmp_path / "report.html"), tmp_path)
    # The script above asks for a frame that a run of three has not: the page stays at its last.
    assert seen["errors"] == []
    assert seen["requests"] == []
    assert set(seen["traces"]) == {"encoded anew", "work", "tokens kept"}


def test_page_fits_a_narrow_window(tmp_path: Path) -> None:
    seen = browse(write_html(record(6), tmp_path / "report.html"), tmp_path, width=500)
    assert seen["errors"] == []
    assert seen["wide"] <= 0


def test_page_of_a_run_without_frames(tmp_path: Path) -> None:
    seen = browse(write_html(record(0), tmp_path / "report.html"), tmp_path)
    # There is no player to use, so the script stops at its first control; nothing else fails.
    assert [e for e in seen["errors"] if "reading 'textContent'" not in e] == []
