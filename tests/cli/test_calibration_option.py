# SPDX-License-Identifier: Apache-2.0
"""`--calibration` in the commands, and what they say of a tower that has none of its own."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest

from stc_video import Calibration
from stc_video.cacher.attach import _warn_of_calibration
from stc_video.calibration import _DEFAULT
from stc_video.cli.app import run_app
from stc_video.cli.output import warnings_as_notes
from stc_video.cli.serve import ServeSettings
from stc_video.errors import StreamWarning
from stc_video.evaluation.configurations import Configuration, controls, parse_configuration

TINY = ("--model", "llava-onevision-tiny", "--threads", "1")
FILE = ("--calibration", str(_DEFAULT))
NOTE = "Note: SiglipVisionModel has no calibration of its own"


@pytest.fixture(autouse=True)
def _untold() -> None:
    _warn_of_calibration.cache_clear()


@pytest.mark.parametrize("option", [(), FILE])
def test_chat(option, clip: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    assert run_app(["chat", str(clip), *TINY, "--fast", *option]) == 0
    error = capsys.readouterr().err
    assert (NOTE in error) == (not option)
    assert "CalibrationWarning" not in error


@pytest.mark.parametrize("option", [(), FILE])
def test_run(option, clip: Path, tmp_path: Path, capsys) -> None:
    small = ("--max-frames", "2", "--dense-every", "0", "--out", str(tmp_path))
    assert run_app(["run", str(clip), *TINY, *small, *option]) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["settings"]["cache calibration"] == (str(_DEFAULT) if option else None)
    assert (NOTE in capsys.readouterr().out) == (not option)


def test_serve_hands_it_on() -> None:
    settings = ServeSettings(model="any", calibration=_DEFAULT)
    assert settings.config().calibration == Calibration.load(_DEFAULT)


def test_eval_compares_with_and_without() -> None:
    main = Configuration(calibration=str(_DEFAULT))
    assert main.cache_config().calibration == str(_DEFAULT)
    other = parse_configuration("quality=0.95", main)
    assert other.cache_config().calibration == str(_DEFAULT)
    assert len({main.name, Configuration().name, other.name}) == 3
    assert all(one.cache_config() is None for one in controls(main, 16))
    with pytest.raises(ValueError, match="calibration does not belong to policy stc"):
        Configuration(policy="stc", calibration=str(_DEFAULT))


@pytest.mark.parametrize("command", ["run", "chat", "serve", "eval"])
def test_a_file_that_is_none_is_said_before_the_model_is_loaded(
    command: str, clip: Path, tmp_path: Path, capsys
) -> None:
    given = {"run": [str(clip)], "chat": [str(clip)], "serve": [],
             "eval": ["mlvu", "--data", "x", "--videos", "x"]}[command]  # fmt: skip
    wrong = ["--model", "/nowhere", "--calibration", str(clip)]
    assert run_app([command, *given, *wrong]) == 2
    error = capsys.readouterr().err
    assert f"calibration {clip} cannot be read" in error
    assert len(error.splitlines()) == 1


def test_a_calibration_without_an_aim_is_refused(clip: Path, capsys) -> None:
    assert run_app(["run", str(clip), "--threshold", "0.9", *FILE]) == 2
    assert "--calibration and --threshold exclude each other" in capsys.readouterr().err


def test_warnings_of_others_stay_as_they_are(capsys) -> None:
    def warn() -> None:
        with warnings_as_notes():
            warnings.warn("a [b]", StreamWarning, stacklevel=1)
            warnings.warn("theirs", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="theirs") as others:
        warn()
    assert len(others) == 1
    assert "Note: a [b]\n" in capsys.readouterr().err
