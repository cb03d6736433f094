# SPDX-License-Identifier: Apache-2.0
"""What a report says, and that it is written whole or not at all."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from records import answer, frame, record

from stc_video.report import SCHEMA_VERSION, headline, summarise, write, write_html, write_json
from stc_video.report.tables import answer_cards


def test_totals() -> None:
    t = summarise(record(6))
    assert (t.frames, t.dense, t.cached, t.unchanged) == (6, 1, 5, 0)
    assert t.cost == pytest.approx((1 + 5 * 0.25) / 6)
    assert t.tokens_encoded == pytest.approx(12 + 5 * 3)
    assert t.tokens_dense == 72
    assert (t.similarity, t.similarity_worst_frame, t.measured) == (pytest.approx(0.98), 0.98, 3)
    assert (t.tokens_kept, t.tokens_before, t.reduction) == (24, 72, 3.0)
    assert t.seconds["tower"] == pytest.approx(0.04 + 5 * 0.015)
    assert t.tower_seconds_per_frame == pytest.approx(0.015)
    assert t.dense_seconds_per_frame == pytest.approx(0.04)
    # The reference is measured beside the run and is in no sum.
    assert t.frames_per_second == pytest.approx(6 / (0.115 + 6 * 0.0035))


def test_headline() -> None:
    assert headline(record(6)) == (
        "6 frames encoded with 38 % of the work of encoding each one from scratch; features are "
        "0.980 similar to that on the 3 frames measured; 4 of 12 tokens kept per frame, 3x "
        "fewer for the language model."
    )
    assert "tokens kept" not in headline(record(6, keep=None))
    assert "similar" not in headline(record(1))
    run = record(2)
    assert headline(replace(run, model=replace(run.model, random=True))).endswith(
        "(random weights)."
    )
    assert headline(record(0)) == "No frame was encoded."


def test_json_has_the_facts(tmp_path: Path) -> None:
    run = record(4)
    path = write_json(run, tmp_path / "report.json")
    data = json.loads(path.read_text())
    assert data["schema_version"] == SCHEMA_VERSION == "1.2"
    assert data["headline"] == headline(run)
    assert data["totals"]["frames"] == 4
    assert data["status"] == "complete"
    assert data["model"]["grid"] == [3, 4]
    assert data["backends"] == {"select_changed": "native"}
    assert len(data["frames"]) == 4
    second = data["frames"][1]
    assert second["kind"] == "cached"
    assert second["kept"] == [1, 2, 3, 4]
    assert second["encoded"] == [0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0]
    assert second["encoded_fraction"] == pytest.approx(0.25)
    assert second["similarity"] == 0.98
    assert second["seconds"]["tower"] == 0.015
    assert "picture" not in second
    assert data["frames"][0]["similarity"] is None


def test_answers_are_in_both_and_keep_their_pictures(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(write, "MOST_PICTURES", 2)
    run = record(8, answers=(answer(8, 3, 5),))
    html = write_html(run, tmp_path / "report.html").read_text()
    assert "at 00:03.5, 8 frames seen, 2 tokens, first after 15 ms, all after 30 ms" in html
    assert "Given from 2 frames (20 tokens with the question)." in html
    # One picture in four, and those of the answer.
    assert html.count("data:image/webp") == 4
    data = json.loads(write_json(run, tmp_path / "report.json").read_text())
    (found,) = data["answers"]
    assert found["retrieved"] == [
        {"index": 3, "time": 1.5, "layers": 3},
        {"index": 5, "time": 2.5, "layers": 3},
    ]


def test_many_retrieved_frames_are_cut_to_those_of_most_layers() -> None:
    (card,) = answer_cards(record(40, answers=(answer(40, *range(40)),)))
    assert len(card.thumbnails) == 12
    assert all(thumb.frame % 2 for thumb in card.thumbnails)
    assert "the 12 retrieved in most layers are shown" in card.given


def test_json_has_no_nan(tmp_path: Path) -> None:
    broken = replace(frame(1), similarity=float("nan"), cost=float("inf"))
    path = write_json(replace(record(1), frames=(broken,)), tmp_path / "report.json")
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert data["frames"][0]["similarity"] is None


def test_html_loads_nothing_and_says_what_matters(tmp_path: Path) -> None:
    run = record(
        6,
        status="ended early",
        problem="clip.mp4: frame 30 is damaged",
        warnings=("random weights: the pictures and similarities say nothing",),
    )
    html = write_html(run, tmp_path / "report.html").read_text()
    assert headline(run) in html
    assert "Ended early:" in html
    assert "clip.mp4: frame 30 is damaged" in html
    assert "random weights: the pictures" in html
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    markup = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", markup)
    assert html.count("<script") == 5  # the data, plotly once, and three of our own


def test_html_escapes_what_it_did_not_write(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    run = record(2)
    run = replace(
        run,
        video=replace(run.video, name=evil, path=evil),
        command=evil,
        warnings=(evil,),
        frames=tuple(replace(f, reason=evil) for f in run.frames),
    )
    html = write_html(run, tmp_path / "report.html").read_text()
    assert "<script>alert(1)" not in html


@pytest.mark.parametrize("writer", [write_html, write_json])
def test_a_failure_in_the_middle_leaves_the_earlier_report(
    tmp_path: Path, writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.out"
    writer(record(2), path)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    # Everything is in the file already and only the last step fails.
    monkeypatch.setattr(write.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writer(record(6), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.out"]


@pytest.mark.parametrize("writer", [write_html, write_json])
def test_a_folder_that_is_not_there(tmp_path: Path, writer) -> None:
    with pytest.raises(FileNotFoundError):
        writer(record(1), tmp_path / "nowhere" / "report.out")


def test_long_runs_keep_some_pictures_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "MOST_PICTURES", 3)
    html = write_html(record(8), tmp_path / "report.html").read_text()
    assert html.count("data:image/webp") == 3
    assert "one frame in 3" in html


def test_a_run_without_frames_can_be_written(tmp_path: Path) -> None:
    assert "No frame was encoded." in write_html(record(0), tmp_path / "r.html").read_text()
    json.loads(write_json(record(0), tmp_path / "r.json").read_text())
