# SPDX-License-Identifier: Apache-2.0
"""Saves of a service: damaged ones, two services on one folder, deletes that fail."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import torch
from pictures import jpeg, push

from stc_video.cli.app import run_app


def fill(client, *names: str) -> None:
    for name in names:
        with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
            for seed in range(3):
                push(socket, jpeg(seed))
                socket.receive_json()


def names(hub) -> list[str]:
    return [stream.name for stream in hub.streams()]


def test_a_damaged_save_is_set_aside_and_the_others_start(service, tmp_path: Path, caplog) -> None:
    with service(save_folder=tmp_path) as (client, hub):
        fill(client, "door", "hall", "roof", "yard")
        expected = hub.get("door").session.logits("what?")
    (file,) = (tmp_path / "roof").glob("data-*/tensors.safetensors")
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)
    (tmp_path / "hall" / "session.json").write_text("{")
    (tmp_path / "yard" / "session.json").unlink()  # as a delete does before anything else
    with caplog.at_level(logging.ERROR), service(save_folder=tmp_path) as (client, hub):
        assert names(hub) == ["door"]
        assert torch.equal(hub.get("door").session.logits("what?"), expected)
        assert "stc_damaged_saves_total 2.0" in client.get("/metrics").text
        fill(client, "roof")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "stream roof begins anew" in said
    assert "tensors.safetensors has" in said
    (aside,) = tmp_path.glob("roof~damaged-*")
    assert (aside / "session.json").is_file()
    assert str(aside) in said
    assert not list((tmp_path / "yard").glob("data-*"))
    with service(save_folder=tmp_path) as (_, hub):
        assert names(hub) == ["door", "roof"]
        assert hub.damaged_saves == 0


def test_two_services_do_not_share_a_folder(start, folder, tmp_path: Path, capsys) -> None:
    running = start("--save-folder", tmp_path)
    assert run_app(["serve", "--model", str(folder), "--save-folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path} is written to by process {running.pid}" in error
    assert len(error.strip().splitlines()) == 1
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    assert start("--save-folder", tmp_path).end() == 0  # a killed service has no folder


def test_a_delete_that_fails_is_told_and_can_be_tried_again(service, tmp_path: Path) -> None:
    with service(save_folder=tmp_path) as (client, hub):
        fill(client, "door")
        hub.save()
        index = tmp_path / "door" / "session.json"
        index.unlink()
        index.mkdir()  # what cannot be deleted as a file, not even by root
        answer = client.delete("/v1/streams/door")
        assert answer.status_code == 500
        assert "the save of stream door could not be deleted" in answer.json()["error"]["message"]
        assert names(hub) == ["door"]
        index.rmdir()
        assert client.delete("/v1/streams/door").status_code == 200
        assert names(hub) == []
        assert not (tmp_path / "door").exists()
