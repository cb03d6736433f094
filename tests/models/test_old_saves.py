# SPDX-License-Identifier: Apache-2.0
"""Saves of earlier revisions are read, whatever has been renamed since."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import old_saves
import pytest
import torch
import transformers
from safetensors.torch import load_file

from stc_video.session.saved_classes import SAVED_CLASSES, name_of

SAVES = Path(__file__).parent / "saves" / "6e68475"
#: the fingerprint of a model has the names of its weights, which are others before 5.6
MADE_WITH = (5, 24)
RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
needs_its_release = pytest.mark.skipif(
    RELEASE < MADE_WITH, reason="the saves are of models of transformers 5.24"
)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@needs_its_release
@pytest.mark.parametrize("case", old_saves.CASES)
def test_a_save_of_an_earlier_revision_goes_on_as_it_did(case):
    expected = load_file(SAVES / f"{case}.after.safetensors")
    with old_saves.load(SAVES, case) as session:
        found = old_saves.go_on(session, case)
    assert torch.equal(found["ids"], expected["ids"])
    for name in ("before", "after"):  # another processor rounds otherwise
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)


@needs_its_release
@pytest.mark.parametrize("case", old_saves.CASES)
def test_what_is_saved_again_holds_the_same_numbers_under_stable_names(case, tmp_path):
    with old_saves.load(SAVES, case) as session:
        session.save(tmp_path / "again")

    def tensors(folder: Path) -> list[torch.Tensor]:
        (file,) = folder.glob("data-*/tensors.safetensors")
        return [tensor for _, tensor in sorted(load_file(file).items())]

    before, after = tensors(SAVES / case), tensors(tmp_path / "again")
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    text = (tmp_path / "again" / "session.json").read_text()
    assert "stc_video" not in text
    assert '"motion-state"' in text or '"stc-state"' in text


@needs_its_release
def test_an_unknown_name_and_wrong_fields_are_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "llava"
    shutil.copytree(SAVES / "llava-rekv-stc", folder)
    shutil.copy(SAVES / "llava.safetensors", tmp_path)
    index = folder / "session.json"
    text = index.read_text()
    assert "stc_video.cacher.stream_state:StcState" in text

    def refused(old: str, new: str, match: str) -> None:
        shutil.rmtree(tmp_path / "llava-rekv-stc", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "llava-rekv-stc")
        (tmp_path / "llava-rekv-stc" / "session.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=match):
            old_saves.load(tmp_path, "llava-rekv-stc")

    refused("stc_video.cacher.stream_state:StcState", "os:system", "'os:system' is none of")
    refused('"compared"', '"comparing"', "stc-state .*comparing")
    refused('"tokens_seen"', '"tokens_read"', "session .*tokens_read")


def test_every_class_has_one_name_and_is_found():
    for name, home in SAVED_CLASSES.items():
        module, _, kind = home.partition(":")
        assert name_of(getattr(importlib.import_module(module), kind)) == name
