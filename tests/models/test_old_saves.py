# SPDX-License-Identifier: Apache-2.0
"""Saves of earlier revisions are read, whatever has been renamed since."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import old_saves
import pytest
import torch
import transformers
from old_saves import REVISIONS, SAVES
from safetensors.torch import load_file

from stc_video.cacher.motion.state import Ledger
from stc_video.session.saved_classes import SAVED_CLASSES, name_of
from stc_video.session.state_tree import unpack

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
    expected = load_file(SAVES / REVISIONS[case] / f"{case}.after.safetensors")
    with old_saves.load(case) as session:
        found = old_saves.go_on(session, case)
    torch.testing.assert_close(found["before"], expected["before"], atol=1e-4, rtol=1e-4)
    if torch.equal(found["before"], expected["before"]):
        assert torch.equal(found["after"], expected["after"])
        assert torch.equal(found["ids"], expected["ids"])
    else:
        # Another processor rounds otherwise, which may bring a token to the other side of a
        # threshold: seen as 0.02 of the logits' norm, where a lost memory is 0.4. That nothing
        # of the state is lost shows below, where it is saved again.
        error = (found["after"] - expected["after"]).norm() / expected["after"].norm()
        assert error < 0.05
        assert found["ids"][0] == expected["ids"][0]


@needs_its_release
@pytest.mark.parametrize("case", old_saves.CASES)
def test_what_is_saved_again_holds_the_same_numbers_under_stable_names(case, tmp_path):
    with old_saves.load(case) as session:
        session.save(tmp_path / "again")

    def tensors(folder: Path) -> list[torch.Tensor]:
        (file,) = folder.glob("data-*/tensors.safetensors")
        return [tensor for _, tensor in sorted(load_file(file).items())]

    before, after = tensors(SAVES / REVISIONS[case] / case), tensors(tmp_path / "again")
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    text = (tmp_path / "again" / "session.json").read_text()
    assert "stc_video" not in text
    assert '"motion-state"' in text or '"stc-state"' in text


@pytest.mark.parametrize("case", ["qwen-plain-motion", "qwen-plain-promise"])
def test_what_motion_had_learned_is_read_from_where_it_was_then(case):
    """Effort and ledger were fields of the stream, and the redo rate was called doubt."""
    text = (SAVES / REVISIONS[case] / case / "session.json").read_text()
    [(_, described)] = [pair for pair in json.loads(text)["state"]["dict"] if pair[0] == "cacher"]
    then = described["fields"]
    effort = dict(then["effort"]["fields"])
    (file,) = (SAVES / REVISIONS[case] / case).glob("data-*/tensors.safetensors")
    history = unpack(described, load_file(file), torch.device("cpu")).history
    assert effort.pop("doubt") == history.effort.redo_rate
    assert effort == {name: getattr(history.effort, name) for name in ("level", "error")}
    ledger = then["ledger"]["fields"] if "ledger" in then else {}
    assert ("ledger" in then) == (case == "qwen-plain-promise")
    assert vars(history.ledger) == vars(Ledger()) | ledger
    assert (history.ledger.audits > 0) == (case == "qwen-plain-promise")


@needs_its_release
def test_an_unknown_name_and_wrong_fields_are_refused_in_one_sentence(tmp_path):
    folder = SAVES / REVISIONS["llava-rekv-stc"] / "llava-rekv-stc"
    text = (folder / "session.json").read_text()
    assert "stc_video.cacher.stream_state:StcState" in text

    def refused(old: str, new: str, match: str) -> None:
        shutil.rmtree(tmp_path / "changed", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "changed")
        (tmp_path / "changed" / "session.json").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=match):
            old_saves.load("llava-rekv-stc", tmp_path / "changed")

    refused("stc_video.cacher.stream_state:StcState", "os:system", "'os:system' is none of")
    refused('"compared"', '"comparing"', "stc-state .*comparing")
    refused('"tokens_seen"', '"tokens_read"', "session .*tokens_read")


def test_every_class_has_one_name_and_is_found():
    for name, home in SAVED_CLASSES.items():
        module, _, kind = home.partition(":")
        assert name_of(getattr(importlib.import_module(module), kind)) == name
