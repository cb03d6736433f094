# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/evaluation.md and docs/world.md: each goes as far as loading the model."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from test_evaluate_command import prepare

from stc_video.cli.app import run_app

DOCS = Path(__file__).parents[2] / "docs"


def commands() -> list[str]:
    """All calls of `stc eval`; those in blocks of code may go over several lines."""
    found = []
    for page in ("evaluation.md", "world.md"):
        text = (DOCS / page).read_text().replace("\\\n", " ")
        found += re.findall(r"^    (stc eval .+)$|`(stc eval [^`]+)`", text, re.MULTILINE)
    return [block or inline for block, inline in found if "BENCHMARK" not in block + inline]


def complete(command: str, data: Path, videos: Path) -> list[str]:
    """The words of a command about files of ours, and a model that does not exist."""
    paths = {"--data": data, "--videos": videos, "--model": videos / "no-model", "--out": videos}
    words, made = shlex.split(command.replace("...", "")), []
    while words:
        word = words.pop(0)
        if word in paths:
            words.pop(0)
        else:
            made.append(word)
    return [*made[1:], *(str(part) for pair in paths.items() for part in pair)]


def test_every_published_table_has_a_command() -> None:
    said = "\n".join(commands())
    assert len(commands()) >= 10
    for benchmark in ("ovo-bench", "streamingbench", "mlvu", "rekv"):
        assert f"stc eval {benchmark} " in said


@pytest.mark.parametrize("command", commands())
def test_it_is_understood(command: str, videos: Path, tmp_path: Path, capsys) -> None:
    data, names = prepare(shlex.split(command)[2], tmp_path)
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / "v.mp4", path)
    assert run_app(complete(command, data, tmp_path)) == 2
    assert "no-model: there is no such folder" in " ".join(capsys.readouterr().err.split())


def test_the_table_of_answers_is_that_of_its_csv() -> None:
    import plot_answers

    page = (DOCS / "world.md").read_text().splitlines()
    rows = plot_answers.table(plot_answers.read(plot_answers.RESULTS))[2:]
    assert len(rows) > 20
    assert [row for row in rows if row not in page] == []
