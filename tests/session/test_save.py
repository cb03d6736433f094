# SPDX-License-Identifier: Apache-2.0
"""Saving and going on, bit for bit; and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
import torch
from forking import fork
from killed_save import kill_before
from safetensors import safe_open
from tiny_llava import TOKENS, make_model, make_tokenizer, video

from stc_video import FolderInUseError, RekvConfig, StreamingSession, make_pruner
from stc_video.folder_lock import FolderLock
from stc_video.memory.base import Snapshot
from stc_video.pruners import PRUNERS
from stc_video.session.state_tree import pack, unpack
from stc_video.session.storage import delete_save, read_save, remove_left_behind, write_save

HERE = Path(__file__).parent
QUESTION = "what is on the table?"
BLOCK = 3 * 2 * 2 * 6 * 16 * 4


def rekv(folder: Path, **settings) -> RekvConfig:
    return RekvConfig(**{"window_tokens": 24, "retrieve_tokens": 30, "slab_bytes": 2 * BLOCK,
                         "disk_folder": folder, **settings})  # fmt: skip


SETTINGS = [
    pytest.param("plain", {}, id="plain"),
    pytest.param("plain", {"cache": None, "prune": "none"}, id="plain, nothing else"),
    pytest.param({"host_bytes": 1 << 20}, {}, id="host"),
    pytest.param({"device_bytes": 2 * BLOCK, "host_bytes": 2 * BLOCK, "disk_bytes": 1 << 20}, {},
                 id="three tiers"),
    pytest.param({"host_bytes": 4 * BLOCK, "eviction": "redundant"}, {"cache": "stc"},
                 id="redundant"),
    pytest.param({"host_bytes": 0, "disk_bytes": 8 * BLOCK, "storage": "int8"},
                 {"positions": "original"}, id="disk, int8"),
    pytest.param({"host_bytes": 4 * BLOCK, "disk_bytes": 0, "storage": "int4"}, {},
                 id="host, int4"),
]  # fmt: skip


@pytest.mark.parametrize(("memory", "settings"), SETTINGS)
def test_a_loaded_session_goes_on_bit_for_bit(model, open_session, tmp_path, memory, settings):
    if not isinstance(memory, str):
        memory = rekv(tmp_path / "blocks", **memory)
    settings = {"cache": "motion", "prune": "stc", "prefill_chunk": 4, **settings}
    if settings["prune"] == "stc":
        settings["tokens_per_frame"] = 6
    frames = video(22)
    session = open_session(memory, **settings)
    session.push(frames[:14], timestamps=range(14))  # the last two wait for their chunk
    session.ask("who?", dialogue=True, max_new_tokens=3)
    session.push(frames[14:15])
    session.save(tmp_path / "save")

    def finish(one):
        logits = [one.logits(QUESTION)]
        one.push(frames[15:], timestamps=range(15, 22))
        logits.append(one.logits(QUESTION))
        answer = one.ask("and who?", dialogue=True, max_new_tokens=4, do_sample=False)
        stats = one.stats()
        totals = (stats.frames, stats.tokens_kept, stats.memory_tokens, stats.evicted)
        return logits, answer.ids.tolist(), answer.retrieved, totals, stats.cache

    expected = finish(session)
    session.close()
    loaded = StreamingSession.load(
        tmp_path / "save", model, make_tokenizer(), memory=memory, **settings
    )
    found = finish(loaded)
    loaded.close()
    assert all(torch.equal(a, b) for a, b in zip(found[0], expected[0], strict=True))
    assert found[1:-1] == expected[1:-1]
    if expected[-1] is not None:
        assert (found[-1].frames, found[-1].cost) == (expected[-1].frames, expected[-1].cost)


#: pruners that remember, in every form that keeps a state of its own
REMEMBER = {
    **{name: {"tokens_per_frame": 6} for name in PRUNERS if name not in ("none", "visionzip")},
    "none": {}, "stc, gaussian": {"tokens_per_frame": 6, "method": "gaussian"},
    "dtd, threshold": {"threshold": 0.9},
    "dtd, window": {"tokens_per_frame": 6, "window": 4}, "evs, clip": {"scope": "clip"},
    "vidcom2, window": {"tokens_per_frame": 6, "window": 4},
    "streaming_assistant, window": {"tokens_per_frame": 6, "window": 3, "parity": "adaptive"},
}  # fmt: skip


@pytest.mark.parametrize("kind", REMEMBER)
def test_every_pruner_goes_on_bit_for_bit(open_session, tmp_path, kind):
    pruner, frames = make_pruner(kind.split(",")[0], **REMEMBER[kind]), video(8)
    session = open_session("plain", prune=pruner)
    session.push(frames[:5])
    session.save(tmp_path)
    expected = [frame.kept for frame in session.push(frames[5:])], session.logits(QUESTION)
    session.close()
    loaded = open_session("plain", cls=loader(tmp_path), prune=pruner)
    found = [frame.kept for frame in loaded.push(frames[5:])], loaded.logits(QUESTION)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("memory", [{}, {"eviction": "redundant"}])
def test_a_session_loaded_in_inference_mode_goes_on_outside(open_session, tmp_path, memory):
    memory = rekv(tmp_path / "blocks", host_bytes=1 << 20, **memory)
    settings, frames = {"cache": "motion", "prune": "stc", "tokens_per_frame": 6}, video(20)
    session = open_session(memory, **settings)
    session.push(frames[:12])
    session.save(tmp_path / "save")
    session.push(frames[12:])
    expected = session.logits(QUESTION)
    session.close()
    with torch.inference_mode():
        loaded = open_session(memory, cls=loader(tmp_path / "save"), **settings)
    loaded.push(frames[12:])
    assert torch.equal(loaded.logits(QUESTION), expected)


def test_a_save_survives_the_session_and_its_stores(model, open_session, tmp_path):
    memory = rekv(tmp_path / "blocks", host_bytes=0, disk_bytes=1 << 20)
    settings = {"prune": "stc", "tokens_per_frame": 6}
    session = open_session(memory, **settings)
    session.push(video(20))
    expected = session.logits(QUESTION)
    session.save(tmp_path / "save")
    session.close()
    assert not any((tmp_path / "blocks").iterdir())
    for _ in range(2):  # loading does not use it up
        again = open_session(memory, cls=loader(tmp_path / "save"), **settings)
        assert torch.equal(again.logits(QUESTION), expected)
        again.close()


def loader(folder):
    return lambda *args, **kwargs: StreamingSession.load(folder, *args, **kwargs)


def test_a_process_killed_while_saving_leaves_a_whole_save(model, open_session, tmp_path):
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_save.py"), str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert len(steps) > 12
    memory = RekvConfig(window_tokens=32, host_bytes=16_384, slab_bytes=4_096,
                        disk_bytes=1 << 20, disk_folder=tmp_path / "loaded")  # fmt: skip
    settings = {"cache": "motion", "prune": "stc", "tokens_per_frame": 6}
    expected = {}
    for frames in (8, 12):
        session = open_session(memory, **settings)
        session.push(video(12)[:8])
        if frames == 12:
            session.push(video(12)[8:])
        expected[frames] = session.logits(QUESTION)
        session.close()
    found = []
    for step in steps:
        session = open_session(memory, cls=loader(tmp_path / str(step)), **settings)
        frames = session.stats().frames
        assert torch.equal(session.logits(QUESTION), expected[frames]), step
        found.append(frames)
        # The next save clears up what the killed one left.
        session.save(tmp_path / str(step))
        assert len(list((tmp_path / str(step)).glob("data-*"))) == 1
        session.close()
    assert found == sorted(found)  # the old one first, then the new one
    assert {8, 12} == set(found)


def test_what_a_save_has_already_is_not_written_again(model, open_session, tmp_path):
    memory, folder = rekv(tmp_path / "blocks", host_bytes=1 << 20), tmp_path / "save"

    def files() -> dict[str, tuple[int, bytes]]:
        found = folder.glob("data-*/0*.safetensors")
        return {path.name: (path.stat().st_ino, path.read_bytes()) for path in found}

    session = open_session(memory)
    session.push(video(8))
    session.save(folder)
    before = files()
    session.push(video(8, seed=1))
    session.save(folder)
    after = files()
    assert 0 < len(before) < len(after)
    assert all(after[name] == file for name, file in before.items())
    expected = session.logits(QUESTION)
    loaded = StreamingSession.load(
        folder, model, make_tokenizer(), memory=memory, cache=None, prune="none"
    )
    assert torch.equal(loaded.logits(QUESTION), expected)
    loaded.close()
    # Another stream in the same place has other frames under the same numbers.
    session.reset()
    session.push(video(8, seed=2))
    session.save(folder)
    assert before.keys() == files().keys()
    assert all(file != before[name] for name, file in files().items())


def test_only_one_session_saves_into_a_folder(model, open_session, tmp_path):
    first, second = open_session("plain"), open_session("plain")
    for session in (first, second):
        session.push(video(2))
    first.save(tmp_path / "save")
    with pytest.raises(FolderInUseError, match=rf"another session of this process \({os.getpid()}"):
        second.save(tmp_path / "save")
    if (child := fork()) == 0:
        code = 1
        try:
            FolderLock(tmp_path / "save")
        except FolderInUseError as error:
            code = 0 if f"process {os.getppid()}" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    first.save(tmp_path / "elsewhere")
    second.save(tmp_path / "save")
    shutil.rmtree(tmp_path / "save")
    second.save(tmp_path / "save")
    second.close()
    first.save(tmp_path / "save")
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path / "save")


def test_a_delete_that_is_killed_leaves_a_whole_save_or_none(open_session, tmp_path):
    session = open_session(rekv(tmp_path / "blocks", host_bytes=0, disk_bytes=1 << 20))
    session.push(video(12))
    session.save(tmp_path / "good")
    session.close()
    found = []
    for step in range(100):
        folder = tmp_path / str(step)
        shutil.copytree(tmp_path / "good", folder)
        if (child := fork()) == 0:
            kill_before(step, ((os, "unlink"), (os, "rmdir"), (os, "fsync")))
            delete_save(folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        try:
            read_save(folder)
            found.append("whole")
        except FileNotFoundError:
            found.append("none")
        if status == 0:
            break
        if folder.exists():
            remove_left_behind(folder)
            assert bool(list(folder.glob("data-*"))) == (found[-1] == "whole")
    assert found[0] == "whole"
    assert found[1:] == ["none"] * (len(found) - 1)
    assert len(found) > 6
    assert not folder.exists()


def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    write_save(tmp_path, Snapshot(values={"n": 1}, tensors={"a": torch.ones(2)}), "a")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_save(tmp_path, Snapshot(values={"n": 2}, tensors={"a": torch.zeros(2)}), "a")
    found = read_save(tmp_path)
    assert found.values["n"] == 1
    assert torch.equal(found.tensors["a"], torch.ones(2))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_save_is_checked_against_model_and_settings(model, open_session, tmp_path):
    session = open_session("plain")
    session.push(video(2))
    session.save(tmp_path)
    session.close()
    tokenizer = make_tokenizer()
    right = {"memory": "plain", "cache": None, "prune": "none"}
    other = make_model()
    other.model.language_model.layers[1].mlp.up_proj.weight[0, 0] += 1
    for changed, settings, message in [
        (make_model(layers=2), right, "the model must be as when .* text was"),
        (other, right, "weights_in_order was"),
        (model, {**right, "prune": "stc"}, "the settings must be .* pruner was"),
        (model, {**right, "memory": "rekv"}, "memory was"),
        (model, {**right, "prefill_chunk": 3}, "prefill_chunk was 8, got 3"),
    ]:
        before = set(changed.__dict__)
        with pytest.raises(ValueError, match=message):
            StreamingSession.load(tmp_path, changed, tokenizer, **settings)
        assert set(changed.__dict__) == before


def test_how_frames_are_retrieved_may_change(model, open_session, tmp_path):
    session = open_session(rekv(tmp_path / "blocks", retrieval="plain", recent_frames=0))
    session.push(video(8))
    session.save(tmp_path / "save")
    session.close()
    memory, loaded = rekv(tmp_path / "blocks", retrieve_tokens=6), rekv(tmp_path / "blocks")
    settings = {"cache": None, "prune": "none"}
    with pytest.raises(ValueError, match="memory was"):
        StreamingSession.load(tmp_path / "save", model, make_tokenizer(), memory=memory, **settings)
    again = open_session(loaded, cls=loader(tmp_path / "save"))
    retrieved = again.ask(QUESTION, max_new_tokens=1).retrieved
    assert retrieved[-1].number == 7
    assert retrieved[-1].layers == 3  # in every layer


def test_a_missing_or_damaged_save_is_named(model, tmp_path):
    def load():
        StreamingSession.load(tmp_path, model, make_tokenizer())

    with pytest.raises(FileNotFoundError, match="there is no saved session in"):
        load()
    (tmp_path / "session.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        load()
    (tmp_path / "session.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="must be of format 3 or older, got 99"):
        load()
    (tmp_path / "session.json").unlink()
    write_save(tmp_path, Snapshot(records={3: torch.ones((2, 2), dtype=torch.uint8)}), "a")
    next(tmp_path.glob("data-*/*3.safetensors")).unlink()
    with pytest.raises(ValueError, match="1 files are missing, among them"):
        load()


def test_a_save_is_json_and_safetensors(open_session, tmp_path):
    session = open_session(rekv(tmp_path / "blocks"), prune="stc", tokens_per_frame=6)
    session.push(video(20))
    session.save(tmp_path / "save")
    files = [path for path in (tmp_path / "save").rglob("*") if path.is_file()]
    assert {path.suffix or path.name for path in files} == {".json", ".safetensors", ".lock"}
    values = json.loads((tmp_path / "save" / "session.json").read_text())
    assert values["model"]["vision"]["image_size"] == 112
    assert values["settings"]["pruner"]["budget"]["tokens_per_frame"] == 6
    data = tmp_path / "save" / values["data"]
    with safe_open(data / "tensors.safetensors", framework="pt") as file:
        assert {"prefix", "window", "index"} <= set(file.keys())
    assert session.stats().tokens_seen == 20 * TOKENS


def test_states_of_every_kind_are_packed():
    tensors: dict[str, torch.Tensor] = {}
    value = {
        "plain": [1, 2.5, "x", None, True], 3: (torch.ones(2), deque([1, 2], maxlen=4)),
        "type": torch.bfloat16, "set": {1},
    }  # fmt: skip
    described = json.loads(json.dumps(pack(value, tensors)))
    back = unpack(described, tensors, torch.device("cpu"))
    assert back["plain"] == value["plain"]
    assert torch.equal(back[3][0], torch.ones(2))
    assert back[3][1] == deque([1, 2])
    assert back[3][1].maxlen == 4
    assert back["type"] is torch.bfloat16
    assert back["set"] == {1}
    with pytest.raises(TypeError, match=r"pathlib.* cannot be saved"):
        pack(Path("x"), tensors)
    with pytest.raises(ValueError, match="none of the parts that a save may have"):
        unpack({"class": "os:system", "fields": {}}, tensors, torch.device("cpu"))
