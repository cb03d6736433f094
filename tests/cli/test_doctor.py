# SPDX-License-Identifier: Apache-2.0
"""`stc doctor`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import stc_kernels
from stc_video.cli import doctor
from stc_video.cli.app import run_app
from stc_video.versions import NEWEST_TESTED

ROOT = Path(__file__).parents[2]


def test_what_is_said_to_install_can_be_installed() -> None:
    """The package is on no index: its extras come from the checkout, and each one exists."""
    folders = ("python", "stc_kernels", "docs")
    text = "".join(p.read_text() for f in folders for p in (ROOT / f).rglob("*.[mp][dy]"))
    assert "install 'stc-kernels" not in text
    named = re.findall(r"""install_hint\(["'](\w+)|pip install '\.\[(\w+)\]""", text)
    extras = metadata.metadata("stc-kernels").get_all("Provides-Extra")
    assert len(named) > 6
    assert {one or other for one, other in named} <= set(extras)


def test_doctor_json(capsys) -> None:
    assert run_app(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is True
    assert data["schema_version"] == "1.0"
    assert data["versions"]["torch"]
    assert data["devices"][0].startswith("cpu: ")
    on_cpu = {row["op"]: row for row in data["operators"] if row["device"] == "cpu"}
    assert set(on_cpu) == set(stc_kernels.OPS)
    for op, row in on_cpu.items():
        found = stc_kernels.available_backends(op)
        assert row["chosen"] == found.available[0]
        assert set(row["missing"]) == set(found.unavailable)
        assert all(row["missing"].values())
    assert [c["name"] for c in data["checks"]][-2:] == [
        "encode and prune two frames",
        "write a report",
    ]
    assert all(check["ok"] for check in data["checks"])


def test_doctor_table(capsys) -> None:
    assert run_app(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "select_changed" in printed
    assert "Ready: `stc run` works" in printed


def test_doctor_names_what_is_newer_than_tested(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEWEST_TESTED, "transformers", (4, 0))
    assert run_app(["doctor", "--json"]) == 0
    assert "tested up to 4.0" in json.loads(capsys.readouterr().out)["untested"][0]
    assert run_app(["doctor"]) == 0
    assert "Newer than tested: transformers" in " ".join(capsys.readouterr().out.split())


def test_doctor_says_what_fails(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: object) -> None:
        raise OSError("no encoder")

    monkeypatch.setattr(doctor, "_write_clip", broken)
    assert run_app(["doctor", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["ok"] is False
    last = data["checks"][-1]
    assert (last["name"], last["ok"]) == ("decode a video", False)
    assert "no encoder" in last["detail"]
    assert run_app(["doctor"]) == 1
    assert "Not ready" in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, stc_video.cli.app; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
