# SPDX-License-Identifier: Apache-2.0
"""`stc run` on real files, and what it does with bad input."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from clip_maker import truncate, write_clip
from interrupting import interrupted
from live_server import TS, paced, serving, serving_files, ts_pieces

from stc_video.cli.app import run_app
from stc_video.cli.pipeline import measures
from stc_video.cli.run_settings import PrunerName, RunSettings
from stc_video.pruners import PRUNERS
from stc_video.video.newest import Newest

TINY = ("--threads", "1")


def run(*arguments: object) -> int:
    return run_app(["run", *map(str, arguments), *TINY])


def report(out: Path) -> dict:
    assert (out / "report.html").stat().st_size > 1_000_000
    return json.loads((out / "report.json").read_text())


def test_run_writes_both_reports(clip: Path, tower_folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    assert (
        run(clip, "--model", tower_folder, "--fps", 2, "--tokens-per-frame", 10, "--out", out) == 0
    )
    data = report(out)
    assert data["status"] == "complete"
    assert data["totals"]["frames"] == 12
    assert data["totals"]["tokens_kept"] == 120
    assert data["totals"]["measured"] == 3
    assert 0 < data["totals"]["cost"] <= 1
    assert data["model"]["grid"] == [8, 8]
    assert data["model"]["prefix_tokens"] == 1
    assert not data["model"]["random"]
    assert data["warnings"] == [w for w in data["warnings"] if "random" not in w]
    assert set(data["backends"]) >= {"select_changed", "saliency_topk"}
    assert data["command"].startswith("stc run ")
    first, second = data["frames"][:2]
    assert first["kind"] == "dense"
    assert first["encoded"] == [1.0] * 64
    assert len(second["encoded"]) == 64
    assert [f["time"] for f in data["frames"]] == pytest.approx([i / 2 for i in range(12)])
    for frame in data["frames"]:
        assert len(frame["kept"]) == 10
        assert frame["kept"] == sorted(frame["kept"])
        assert frame["seconds"]["tower"] > 0
        assert (frame["similarity"] is None) == (frame["dense_seconds"] is None)
    printed = capsys.readouterr().out
    assert data["headline"].split(";")[0] in " ".join(printed.split())
    assert "report.html" in printed


def test_dense_reference_does_not_change_the_run(
    clip: Path, tower_folder: Path, tmp_path: Path
) -> None:
    common = (clip, "--model", tower_folder, "--fps", 4, "--tokens-per-frame", 10)
    run(*common, "--dense-every", 1, "--out", tmp_path / "with")
    run(*common, "--dense-every", 0, "--out", tmp_path / "without")
    measured, plain = report(tmp_path / "with"), report(tmp_path / "without")
    assert measured["totals"]["measured"] == 24
    assert plain["totals"]["measured"] == 0
    assert plain["totals"]["similarity"] is None
    for a, b in zip(measured["frames"], plain["frames"], strict=True):
        assert (a["kind"], a["encoded"], a["kept"]) == (b["kind"], b["encoded"], b["kept"])
    # A dense frame is what the tower gives by itself.
    dense = [f["similarity"] for f in measured["frames"] if f["kind"] == "dense"]
    assert dense
    assert min(dense) > 0.9999


def test_stc_policy_and_its_options(clip: Path, tower_folder: Path, tmp_path: Path) -> None:
    options = ("--policy", "stc", "--interval", 3, "--ratio", 0.5, "--prune", "none")
    assert run(clip, "--model", tower_folder, *options, "--out", tmp_path) == 0
    data = report(tmp_path)
    assert [f["kind"] for f in data["frames"][:6]] == ["dense", "cached", "cached"] * 2
    assert data["settings"]["cache ratio"] == 0.5
    assert data["frames"][0]["kept"] is None
    assert data["totals"]["reduction"] == 1.0
    assert "tokens kept" not in data["headline"]


def test_every_pruner_is_offered() -> None:
    assert set(get_args(PrunerName)) == set(PRUNERS)
    for name in PRUNERS:
        settings = RunSettings(prune=name, tokens_per_frame=5)
        pruner = settings.pruner()
        if pruner is None:
            assert name == "none"
            continue
        assert pruner.exact
        if settings.needs_attention:
            continue
        kept = pruner(torch.randn(1, 12, 8), (3, 4))
        assert kept.counts.tolist() == [5]


@pytest.mark.parametrize("prune", ["streaming_assistant", "tome", "visionzip"])
def test_run_with_another_pruner(
    clip: Path, tower_folder: Path, tmp_path: Path, prune: str
) -> None:
    options = ("--prune", prune, "--tokens-per-frame", 9, "--max-frames", 3)
    assert run(clip, "--model", tower_folder, *options, "--out", tmp_path) == 0
    data = report(tmp_path)
    assert data["settings"]["prune"] == prune
    assert [len(frame["kept"]) for frame in data["frames"]] == [9, 9, 9]


def test_random_weights_are_labelled_everywhere(clip: Path, tmp_path: Path, capsys) -> None:
    options = ("--random-weights", "llava-onevision-tiny", "--max-frames", 2)
    assert run(clip, *options, "--out", tmp_path) == 0
    notice = "random weights: the pictures and similarities say nothing about a trained model"
    data = report(tmp_path)
    assert data["model"]["random"]
    assert notice in data["warnings"]
    assert notice in (tmp_path / "report.html").read_text()
    assert notice in " ".join(capsys.readouterr().out.split())
    # The whole path of LLaVA-OneVision: 27 x 27 tokens in the tower, 14 x 14 behind the pooling.
    assert data["model"]["grid"] == [27, 27]
    assert data["model"]["feature_grid"] == [14, 14]
    assert data["totals"]["seconds"]["project"] > 0
    assert max(max(f["kept"]) for f in data["frames"]) < 196


def test_a_truncated_video_gives_a_complete_report_and_exit_code_1(
    clip: Path, tower_folder: Path, tmp_path: Path, capsys
) -> None:
    cut = truncate(Path(shutil.copy(clip, tmp_path / "cut.mp4")), 0.8)
    assert run(cut, "--model", tower_folder, "--fps", 4, "--out", tmp_path / "out") == 1
    data = report(tmp_path / "out")
    assert data["status"] == "ended early"
    assert "cut.mp4" in data["problem"]
    assert 3 < data["totals"]["frames"] < 24
    assert "Ended early" in (tmp_path / "out" / "report.html").read_text()
    assert "ended early" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.mp4"], "there is no such file"),
        (["."], "is a directory"),
        (["text.mp4"], "is not a video"),
        (["CLIP", "--model", "/nowhere"], "there is no such folder"),
        (["CLIP", "--model", "."], "has no config.json"),
        (["CLIP", "--random-weights", "nothing"], "the geometry must be one of"),
        (["CLIP", "--model", "TOWER", "--random-weights", "siglip-base"], "not both"),
        (["CLIP", "--device", "nothing"], "is not known to torch"),
        (["CLIP", "--ratio", "0.5"], "--ratio belongs to --policy stc"),
        (["CLIP", "--policy", "stc", "--ratio", "7"], "--ratio must be above 0 and at most 1"),
        (["CLIP", "--prune", "dtd", "--prune-method", "gaussian"], "belongs to --prune stc"),
        (
            ["CLIP", "--prune", "visionzip", "--random-weights", "llava-onevision-tiny"],
            "--prune visionzip needs a tower with a class token",
        ),
        (["CLIP", "--threshold", "3"], "--threshold must be a cosine"),
        (["CLIP", "--fps", "0"], "--fps must be a positive number"),
        (["CLIP", "--start", "60"], "no frame from 60 s on"),
        (["CLIP", "--out", "text.mp4"], "this is a file, not a folder"),
        (
            ["CLIP", "--model", "TOWER", "--tokens-per-frame", "65"],
            "--tokens-per-frame must be between 1 and 64",
        ),
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
    assert run(*[names.get(a, a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "report.html").exists()


def wide(folder: Path) -> Path:
    return write_clip(folder / "wide.mp4", 3, paint=lambda index: sides(index))


def sides(index: int) -> np.ndarray:
    """Twice as wide as high, the left edge red and the right one blue."""
    image = np.full((64, 128, 3), 128, np.uint8)
    image[:, :16], image[:, -16:] = (250, 0, 0), (0, 0, 250)
    return image


@pytest.mark.parametrize("fit", [None, "crop", "pad", "stretch"])
def test_the_whole_picture_or_its_middle(
    tower_folder: Path, tmp_path: Path, capsys, fit: str | None
) -> None:
    chosen = [] if fit is None else ["--fit", fit]
    out = tmp_path / "out"
    assert run(wide(tmp_path), "--model", tower_folder, *chosen, "--out", out) == 0
    data, printed = report(out), " ".join(capsys.readouterr().out.split())
    note = "the model sees the middle 64 x 64 of 128 x 64 pixels, 50 % of the picture; --fit pad"
    crops = fit in (None, "crop")
    assert any(note in warning for warning in data["warnings"]) == crops
    assert (note in printed) == crops
    assert data["settings"]["fit"] == fit


def test_an_address_without_its_password(clip: Path, tower_folder: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / "a b.mp4")
    with serving_files(tmp_path) as address:
        source = f"{address}/a b.mp4".replace("://", "://user:secret@")
        assert run(source, "--model", tower_folder, "--fps", 4, "--out", tmp_path) == 0
    data = report(tmp_path)
    assert data["totals"]["frames"] == 24
    assert (data["video"]["name"], data["video"]["path"]) == ("a b.mp4", f"{address}/a b.mp4")
    assert "secret" not in (tmp_path / "report.json").read_text()
    assert "secret" not in (tmp_path / "report.html").read_text()


def test_a_live_source_until_enough_was_seen(tower_folder: Path, tmp_path: Path) -> None:
    done = threading.Event()
    count = 500
    levels, stamps = (
        (i % 200 for i in range(count)),
        (3600 * (i > 20) + i / 25 for i in range(count)),
    )
    pieces = ts_pieces(levels, stamps)
    with serving(TS, paced(pieces, 50), done) as address:
        options = ("--fps", 10, "--max-frames", 4, "--out", tmp_path)
        assert run(address, "--model", tower_folder, *options) == 0
    data = report(tmp_path)
    assert data["totals"]["frames"] == 4
    assert data["video"]["name"] == "live"


def test_ctrl_c_while_a_camera_is_silent(
    tower_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pressed(Newest):
        """Ctrl-C is pressed where the next frame is waited for after the first."""

        def taken(self, stopped: Callable[[], bool]) -> Iterator[Any]:
            seen: list[Any] = []

            def asked() -> bool:  # while there is no frame
                if seen:
                    signal.raise_signal(signal.SIGINT)
                return stopped()

            for frame in super().taken(asked):
                yield frame
                seen.append(frame)

    monkeypatch.setattr("stc_video.video.source.Newest", Pressed)
    done = threading.Event()
    with serving(TS, ts_pieces([60] * 30, [0.04 * i for i in range(30)]), done) as address:
        assert run(address, "--model", tower_folder, "--out", tmp_path) == 130
    data = report(tmp_path)
    assert data["status"] == "interrupted"
    assert data["totals"]["frames"] >= 1


def test_joined_recordings_are_said_to_be_so(tower_folder: Path, tmp_path: Path) -> None:
    pieces = ts_pieces([60] * 20, [0.1 * (i % 10) for i in range(20)])
    (tmp_path / "day.ts").write_bytes(b"".join(pieces))
    assert run(tmp_path / "day.ts", "--model", tower_folder, "--out", tmp_path) == 0
    data = report(tmp_path)
    assert any("its timestamps began again once" in warning for warning in data["warnings"])
    assert data["totals"]["frames"] == 4


def test_an_unknown_choice_is_refused(clip: Path, capsys) -> None:
    assert run(clip, "--policy", "magic") == 2
    assert "magic" in capsys.readouterr().err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        run(tmp_path / "missing.mp4", "--debug", "--out", tmp_path / "out")


@pytest.mark.slow
def test_ctrl_c_writes_the_report_of_what_was_done(tmp_path: Path) -> None:
    long = write_clip(tmp_path / "long.mp4", 4000, rate=25)
    out = tmp_path / "out"
    options = ["--random-weights", "llava-onevision-tiny", "--fps", "25", "--out", out, *TINY]
    _, errors = interrupted(["run", long, *options], r"[3-9]/4000")
    assert "stopped by hand" in errors
    data = report(out)
    assert data["status"] == "interrupted"
    assert 3 <= data["totals"]["frames"] < 4000


@pytest.mark.parametrize("every", [2, 3, 4, 8])
def test_the_reference_is_not_in_step_with_a_fixed_schedule(every: int) -> None:
    chosen = [i for i in range(200 * every) if measures(i, every)]
    assert len(chosen) == 200
    assert {c // every for c in chosen} == set(range(200))
    assert 0 not in chosen
    for interval in (2, 4):  # dense frames of `stc` are met about as often as they occur
        met = sum(c % interval == 0 for c in chosen) / len(chosen)
        assert abs(met - 1 / interval) < 0.12


def test_every_frame_or_none_can_be_measured() -> None:
    assert all(measures(i, 1) for i in range(5))
    assert not any(measures(i, 0) for i in range(5))


def test_help_is_quick_to_read(capsys) -> None:
    assert run_app(["run", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--fps", "--policy", "--tokens-per-frame", "--dense-every", "--random-weights"):
        assert option in printed
    assert run_app(["--version"]) == 0
    assert "stc-kernels" in capsys.readouterr().out
