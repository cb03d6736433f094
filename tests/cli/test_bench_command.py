# SPDX-License-Identifier: Apache-2.0
"""`stc bench`: its tables and files, and what it does with bad input."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from waiting import PATIENCE, wait_for

from stc_video.bench.cases import Case
from stc_video.bench.contenders import KINDS, Contender
from stc_video.cli.app import run_app
from stc_video.towers.pre_norm import PreNormTower

NAMES = ["dense-eager", "paper-eager", "stc", "motion", "motion-refresh"]


def bench(*arguments: object) -> int:
    small = ("--geometry", "dinov2-small", "--layers", 1, "--no-compiled", "--repeats", 3)
    options = map(str, (*small, "--threads", 1, "--device", "cpu", *arguments))
    return run_app(["bench", *options])


def test_tables_and_files(tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "out"
    assert bench("--ratios", "1/4,0.5", "--out", out, "--name", "cpu") == 0
    rows = list(csv.DictReader((out / "cpu.csv").open()))
    assert [row["contender"] for row in rows] == 2 * NAMES
    for row in rows:
        assert row["correct"] == "True"
        assert row["weights"] == "random"
        assert row["threads"] == "1"
        assert row["command"].startswith("stc bench --geometry dinov2-small")
        assert row["torch"]
        assert row["revision"]
        assert float(row["time_ratio_low"]) <= float(row["time_ratio_high"])
    data = json.loads((out / "cpu.json").read_text())
    assert data["finished"] == data["cases"] == 2
    assert "random weights" in data["weights"]
    assert set(data["contenders"]) == set(NAMES)
    assert len(data["rows"]) == 10
    assert data["not_measured"] == data["limits"] == []
    assert "</svg>" in (out / "cpu.svg").read_text()
    assert sorted(path.name for path in out.iterdir()) == ["cpu.csv", "cpu.json", "cpu.svg"]
    printed = capsys.readouterr().out
    assert "dinov2-small, 1 layer, float32, 1 stream, 1/4 of 257 tokens" in printed
    assert printed.count("✓") == 10
    assert "random weights" in printed


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert bench("--ratios", "1/4", "--out", tmp_path) == 0
    assert "is missing: pip install matplotlib" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.glob("*.svg"))


def test_json_is_all_that_goes_to_standard_output(capsys) -> None:
    assert bench("--json", "--ratios", "1/8", "--contenders", "dense-eager,motion") == 0
    captured = capsys.readouterr()
    data = json.loads(captured.out)
    assert [row["contender"] for row in data["rows"]] == ["dense-eager", "motion"]
    assert data["rows"][1]["rows"] == 32
    assert data["rows"][1]["peak_mib"] is None
    assert "1/8 of 257 tokens" in captured.err


def test_a_contender_that_is_wrong_gets_a_cross_and_exit_code_1(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KINDS["stc"].make

    def make(case: Case) -> Contender:
        contender = right(case)
        layer = PreNormTower.of(contender.module).blocks[0].mlp.fc1
        with torch.inference_mode(False):
            layer.weight = nn.Parameter(-layer.weight.detach())
        return contender

    monkeypatch.setitem(KINDS, "stc", replace(KINDS["stc"], make=make))
    assert bench("--ratios", "1/4", "--out", tmp_path) == 1
    rows = {row["contender"]: row for row in csv.DictReader((tmp_path / "bench.csv").open())}
    assert rows["stc"]["correct"] == "False"
    assert rows["stc"]["median_ms"] == rows["stc"]["time_ratio"] == ""
    assert all(row["correct"] == "True" for name, row in rows.items() if name != "stc")
    printed = capsys.readouterr().out
    assert printed.count("✗") == 1
    assert "stc is wrong: a token's relative error is" in printed


def test_limits_decide_about_the_exit_code(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stc_video.loading.geometries import GEOMETRIES

    # A whole tower of one layer, because limits do not hold for parts of one.
    kind, settings = GEOMETRIES["dinov2-small"]
    monkeypatch.setitem(GEOMETRIES, "dinov2-small", (kind, settings | {"num_hidden_layers": 1}))
    table = tmp_path / "limits.csv"
    line = "dinov2-small,float32,1,1/4,motion,dense-eager"
    options = ("--geometry", "dinov2-small", "--no-compiled", "--repeats", "3", "--device", "cpu",
               "--ratios", "1/4", "--contenders", "dense-eager,motion")  # fmt: skip
    for at_most, code, mark in (("1000", 0, "✓"), ("0.0001", 1, "✗")):
        table.write_text(
            f"geometry,dtype,streams,ratio,contender,baseline,at_most\n{line},{at_most}\n"
        )
        assert run_app(["bench", *options, "--limits", str(table)]) == code
        printed = capsys.readouterr().out
        assert mark in printed[printed.index("Limits") :]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--geometry", "siglip"], "--geometry must be among siglip-so400m, siglip-base"),
        (["--geometry", "dinov2-base"], "--layers"),  # with --layers 13, below
        (["--streams", "0"], "--streams must be whole numbers from 1 with commas between, got '0'"),
        (["--streams", "1,two"], "got 'two'"),
        (["--streams", "1,1"], "--streams: got 1 twice"),
        (["--ratios", "1/0"], "--ratios must be fractions above 0 and at most 1"),
        (["--ratios", "0"], "got '0'"),
        (["--ratios", "1/4,"], "got ''"),
        (["--ratios", "0.25,1/4"], "--ratios: got 1/4 twice"),
        (["--contenders", "fastest"], "--contenders must be among dense-eager"),
        (["--contenders", "motion"], "one must be dense, to compare with: dense-eager"),
        (["--contenders", "dense-compiled"], "one must be dense"),
        (["--contenders", "dense-graph"], "dense-graph needs a CUDA device, and this is cpu"),
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--device", "nothing"], "is not known to torch"),
        (["--out", "text.csv"], "this is a file, not a folder"),
        (["--name", "a/b"], "--name must be the name of a file"),
        (["--limits", "missing.csv"], "--limits missing.csv: there is no such file"),
        (["--limits", "text.csv"], "leave --layers out"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.csv").write_text("just,some,words\n")
    layers = (
        []
        if "missing.csv" in arguments
        else ["--layers", "13" if "dinov2-base" in arguments else "1"]
    )
    assert run_app(["bench", "--device", "cpu", "--no-compiled", *layers, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.csv"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just,some,words\n", "the columns must be geometry, dtype"),
        (
            "geometry,dtype,streams,ratio,contender,baseline,at_most\na,b,c,d,e,f,g\n",
            "line 2",
        ),
        ("geometry,dtype,streams,ratio,contender,baseline,at_most\na,b\n", "line 2"),
    ],
)
def test_limits_that_are_none(tmp_path: Path, capsys, text: str, message: str) -> None:
    (tmp_path / "limits.csv").write_text(text)
    assert run_app(["bench", "--device", "cpu", "--limits", str(tmp_path / "limits.csv")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path: Path) -> None:
    ratios = [eighths / 8 for eighths in range(1, 9)]
    process = subprocess.Popen(
        [sys.executable, "-m", "stc_video.cli", "bench", "--geometry", "dinov2-small", "--layers",
         "1", "--no-compiled", "--ratios", ",".join(map(str, ratios)), "--repeats", "100000",
         "--seconds", "2", "--device", "cpu", "--threads", "1", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        # It is written when the first case is finished.
        wait_for(lambda: (tmp_path / "bench.json").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    done = int(re.search(rf"Stopped after (\d) of {len(ratios)} cases", printed)[1])
    assert done < len(ratios)
    rows = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert [row["contender"] for row in rows] == done * NAMES
    assert [float(row["ratio"]) for row in rows[:: len(NAMES)]] == ratios[:done]


def test_help_names_the_options(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "COLUMNS", "200")
    assert run_app(["bench", "--help"]) == 0
    printed = capsys.readouterr().out
    for option in ("--geometry", "--streams", "--ratios", "--contenders", "--limits", "--json"):
        assert option in printed
