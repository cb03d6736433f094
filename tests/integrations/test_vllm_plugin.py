# SPDX-License-Identifier: Apache-2.0
"""The plugin for vLLM as far as it goes without vLLM: setting, names, what it needs of a release.

`make test-vllm-hooks` downloads a wheel of vLLM and looks for every hook in it; tests/in_vllm has
the tests with the engine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest
import torch

from stc_video.integrations.vllm import plugin
from stc_video.integrations.vllm.hooks import HOOKS, missing_hooks
from stc_video.integrations.vllm.names import LONGEST, NAMELESS, StreamName
from stc_video.integrations.vllm.settings import Settings


@pytest.mark.parametrize("text", [None, "", "off", "0"])
def test_off_unless_asked_for(text):
    assert Settings.of({} if text is None else {"STC_VLLM": text}) is None


def test_settings():
    assert Settings.of({"STC_VLLM": "on"}) == Settings()
    given = Settings.of({"STC_VLLM": "bytes=1.5MiB,quality=0.9,threshold=0.8,items=on,prune=stc"})
    assert given == Settings(3 * 2**19, 0.9, 0.8, True, "stc")
    assert given.config().threshold == 0.8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("yes", "must be on, off, or some of bytes, quality"),
        ("colour=red", "must be on, off, or some of"),
        ("bytes=much", "bytes cannot be 'much'"),
        ("bytes=0", "bytes must be at least 1"),
        ("quality=2", "quality must be a cosine between 0.5 and 0.999"),
        ("items=maybe", "items cannot be 'maybe'"),
        ("prune=nobody", "nobody"),
    ],
)
def test_a_wrong_setting_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Settings.of({"STC_VLLM": text})


def test_names_travel_as_numbers():
    options = {"fps": 2, "stc_stream": "Kamera \ud800 7", "stc_end": True}
    name, rest = StreamName.taken_from(options)
    assert rest == {"fps": 2}
    assert StreamName.from_numbers(name.repeated(3)) == [name] * 3
    other, _ = StreamName.taken_from({"stc_stream": "Kamera 8"})
    assert not other.is_last
    assert other.key != name.key
    assert StreamName.taken_from({"fps": 2}) == (NAMELESS, {"fps": 2})
    assert torch.equal(NAMELESS.repeated(2), torch.zeros(2, 3, dtype=torch.int64))
    assert StreamName.from_numbers(NAMELESS.repeated(1)) == [NAMELESS]


def test_names_in_uuids():
    name, _ = StreamName.taken_from({"stc_stream": "a/b:c"})
    assert StreamName.from_uuids(["stc_stream:a/b:c/1", "stc_stream:a/b:c/2"]) == name
    assert StreamName.from_uuids(["stc_end:a/b:c/3"]) == replace(name, is_last=True)
    assert StreamName.from_uuids([None, "a picture", "stc_stream"]) == NAMELESS


@pytest.mark.parametrize(
    ("uuids", "message"),
    [
        (["stc_stream:a/1", None], "got 'stc_stream:a/1' to 'None'"),
        (["stc_stream:a/1", "stc_stream:b/1"], "the name of one stream"),
        (["stc_stream:a/1", "stc_end:a/2"], "the name of one stream"),
        (["stc_stream:a"], "'/' and what no other frame has"),
        (["stc_stream:a/"], "'/' and what no other frame has"),
        (["stc_stream:/1"], "got 0 characters"),
        (["stc_stream:" + "x" * 10_000 + "/1"], "got 10000 characters"),
    ],
)
def test_a_wrong_uuid_is_refused(uuids, message):
    with pytest.raises(ValueError, match=message):
        StreamName.from_uuids(uuids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stc_stream": "x" * 10_000}, f"1 to {LONGEST} characters, got 10000 characters"),
        ({"stc_stream": ""}, "got 0 characters"),
        ({"stc_stream": 7}, "got int"),
        ({"stc_stream": "a", "stc_end": "yes"}, "stc_end: must be true or false, got 'yes'"),
        ({"stc_end": True}, "needs the name of the stream"),
    ],
)
def test_a_wrong_name_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamName.taken_from(options)


def test_without_vllm_it_says_so():
    if plugin._release() != "none":
        pytest.skip("vLLM is installed here")
    assert plugin.obstacle() == "vLLM must be from 0.32 to below 0.33, found none"


def test_another_release_is_left_alone(tmp_path):
    """A package of that name and release, which fails when anybody imports it."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm/__init__.py").write_text("raise RuntimeError('imported')")
    info = tmp_path / "vllm-9.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 9.1.0\n")
    (info / "RECORD").write_text("vllm/__init__.py,,\n")
    program = (
        "import logging; logging.basicConfig(level='INFO')\n"
        "from stc_video.integrations.vllm.plugin import register\n"
        "register(); register()"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": path, "STC_VLLM": "on"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    sentence = (
        "not attached, and vLLM is the stock one: vLLM must be from 0.32 to below 0.33, found 9"
    )
    assert sentence in run.stderr


def wheel() -> zipfile.Path:
    """The folder ``vllm`` in the wheel that STC_VLLM_WHEEL names."""
    if name := os.environ.get("STC_VLLM_WHEEL"):
        return zipfile.Path(name, "vllm/")
    pytest.skip("STC_VLLM_WHEEL names no wheel of vLLM; make test-vllm-hooks downloads one")


def test_a_wheel_has_every_hook():
    assert missing_hooks(wheel()) == []


def test_a_hook_that_moves_is_noticed(tmp_path):
    for name in HOOKS:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(wheel().joinpath(name).read_text("utf-8"), "utf-8")
    tower = tmp_path / "model_executor/models/qwen3_vl.py"
    tower.write_text(tower.read_text().replace("rotary_pos_emb_cos", "cosines"))
    (tmp_path / "multimodal/video_prune/evs.py").unlink()
    assert missing_hooks(tmp_path) == [
        "model_executor/models/qwen3_vl.py: Qwen3_VisionBlock.forward(rotary_pos_emb_cos)",
        "multimodal/video_prune/evs.py: compute_retained_tokens_count",
        "multimodal/video_prune/evs.py: compute_retention_mask",
    ]
