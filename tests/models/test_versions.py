# SPDX-License-Identifier: Apache-2.0
"""Releases of transformers outside of the supported range are refused by name."""

from __future__ import annotations

import sys

import pytest
import transformers  # noqa: F401

import stc_video
from stc_video.versions import TOWERS_FROM, VIDEO_MODELS_FROM, require_transformers


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
