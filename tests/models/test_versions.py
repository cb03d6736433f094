# SPDX-License-Identifier: Apache-2.0
"""Releases of transformers outside of the supported range are refused by name."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path

import pytest
import transformers  # noqa: F401

import stc_video
from stc_video import versions
from stc_video.errors import UntestedReleaseWarning
from stc_video.versions import (
    NEWEST_TESTED,
    TOWERS_FROM,
    VIDEO_MODELS_FROM,
    require_transformers,
)


def pretend(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Newer releases exchange their module when a model is made.
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)


@pytest.mark.parametrize("version", ["4.40.2", "6.0.0", "6.1.0.dev0"])
def test_a_tower_of_another_release_is_refused(siglip, version, monkeypatch):
    pretend(version, monkeypatch)
    with pytest.raises(
        stc_video.UnsupportedModelError, match=rf"from 4\.41 to below 6\.0, found {version}"
    ):
        stc_video.attach_cacher(siglip)
    monkeypatch.undo()
    stc_video.attach_cacher(siglip).detach()


@pytest.mark.parametrize("version", ["4.41.2", "4.45.2", "4.57.6", "5.0.0", "5.24.0.dev0"])
def test_releases_in_the_range_are_taken(version, monkeypatch):
    pretend(version, monkeypatch)
    require_transformers(TOWERS_FROM, "attach_cacher")


def test_video_models_need_a_later_one(monkeypatch):
    pretend("4.56.2", monkeypatch)
    with pytest.raises(stc_video.UnsupportedModelError, match=r"from 4\.57 .* found 4\.56\.2"):
        require_transformers(VIDEO_MODELS_FROM, "LLaVA-OneVision")


def locked() -> dict[str, str]:
    """Package -> release, of the constraints for this Python and of triton's own line."""
    folder = Path(__file__).resolve().parents[2] / "requirements"
    name = f"py{sys.version_info.major}{sys.version_info.minor}.txt"
    text = (folder / name).read_text() + (folder / "triton.txt").read_text()
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE))


def test_the_locked_releases_are_tested_ones():
    for package, tested in NEWEST_TESTED.items():
        if package != "torch":  # installed first, by its line in the Makefile
            assert tuple(map(int, locked()[package].split(".")[:2])) <= tested, package


def test_the_constraints_name_no_index_and_pin_everything():
    for path in (Path(__file__).resolve().parents[2] / "requirements").glob("*.txt"):
        for line in path.read_text().splitlines():
            assert re.fullmatch(r"#.*|[a-z0-9][\w.-]*==[\w.+!]+( ?;.*)?", line), (path.name, line)


def test_a_release_that_is_newer_than_tested_is_told_once(siglip, monkeypatch):
    monkeypatch.setitem(versions.NEWEST_TESTED, "transformers", (4, 0))
    assert any(words.startswith("transformers ") for words in versions.untested())
    versions.warn_if_untested.cache_clear()
    with pytest.warns(UntestedReleaseWarning, match=r"transformers .* \(tested up to 4\.0\)"):
        stc_video.attach_cacher(siglip).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stc_video.attach_cacher(siglip).detach()
    versions.warn_if_untested.cache_clear()
