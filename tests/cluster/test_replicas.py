# SPDX-License-Identifier: Apache-2.0
"""`stc serve --ray`: two nodes with a replica each, of which one is killed."""

from __future__ import annotations

import json
import re
import signal
import socket as sockets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import pytest
from pictures import jpeg, question
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import connect

from stc_video.serve.parts import part_of

NAMES = {0: "yard", 1: "door"}  # a stream of each part
PATIENCE = 240.0


def free_port() -> int:
    with sockets.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


class Camera:
    """A client that counts what becomes of its frames."""

    def __init__(self, port: int, name: str) -> None:
        self._address = f"ws://127.0.0.1:{port}/v1/streams/{name}/frames"
        self.outcomes: Counter[str] = Counter()
        self.numbers: list[int] = []

    def push(self, count: int) -> None:
        """Push frames one by one, each with its outcome; a lost connection is an outcome, too."""
        for _ in range(count):
            self.outcomes["sent"] += 1
            try:
                with connect(self._address, open_timeout=PATIENCE) as socket:
                    socket.send(jpeg(self.outcomes["sent"]))
                    told = json.loads(socket.recv(timeout=PATIENCE))
            except (ConnectionClosed, WebSocketException, OSError, TimeoutError):
                self.outcomes["unanswered"] += 1
            else:
                self.outcomes[told["event"]] += 1
                self.numbers.append(told["number"])


def until(look):
    """Wait for something to be there; returns it.

    The first time, a replica may need longer to reach the others than it waits for them.
    """
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.5)
    return found


@pytest.fixture
def service(nodes, model_folder: Path, tmp_path: Path):
    from stc_video.serve.config import ServeConfig
    from stc_video.serve.replicas import ModelChoice, start_replicas, stop_replicas

    port, said = free_port(), []
    config = ServeConfig(
        port=port, save_folder=tmp_path / "saves", autosave_seconds=1, tokens_per_frame=6
    )
    start_replicas(
        ModelChoice(str(model_folder), "cpu", threads=1), config, nodes.address, 2,
        lambda *ready: said.append(ready), proxies="HeadOnly",
    )  # fmt: skip
    assert said == [(f"http://127.0.0.1:{port}", 2)]
    yield port, config.save_folder
    stop_replicas()


def test_a_replica_that_is_killed_comes_back_with_its_streams(nodes, service) -> None:
    assert {part_of(name, 2): name for name in NAMES.values()} == NAMES
    port, saves = service
    cameras = {name: Camera(port, name) for name in NAMES.values()}
    for camera in cameras.values():
        camera.push(4)
        assert camera.outcomes == {"sent": 4, "seen": 4}
        assert camera.numbers == [0, 1, 2, 3]
    client = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, follow_redirects=True
    )

    def metric(name: str) -> dict[str, float]:
        found = re.findall(rf"^{name}{{(.*)}} (.*)$", client.get("/metrics").text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    listed = until(lambda: client.get("/v1/streams").json().get("data"))
    assert [entry["id"] for entry in listed] == sorted(NAMES.values())
    up = {f'replica="{number}"': 1.0 for number in (0, 1)}
    until(lambda: metric("stc_replica_up") == up)
    for part, name in NAMES.items():
        labels = f'outcome="seen",replica="{part}",stream="{name}"'
        assert until(lambda: metric("stc_frames_total").get(labels)) == 4  # noqa: B023
        # Whichever replica gets it sends it where it belongs.
        for _ in range(4):
            answer = client.post("/v1/chat/completions", json=question(video_stream=name))
            assert answer.json()["stc"]["frames_seen"] == 4
    until(lambda: client.post("/v1/chat/completions", json=question()).status_code == 400)

    until(lambda: all((saves / name / "session.json").is_file() for name in NAMES.values()))
    before = {name: client.post(f"/v1/streams/{name}/chat/completions", json=question()).json()
              for name in NAMES.values()}  # fmt: skip
    time.sleep(2)  # whatever was pushed is saved now
    nodes.kill()
    nodes.add()
    for camera in cameras.values():
        camera.push(1)  # may be lost with its replica, but not without a count
    until(lambda: metric("stc_replica_up") == up)
    for name, camera in cameras.items():
        outcomes = camera.outcomes
        assert outcomes["sent"] == outcomes["seen"] + outcomes["unanswered"] == 5
        again = client.post(f"/v1/streams/{name}/chat/completions", json=question()).json()
        assert again["stc"]["frames_seen"] in (4, 5)
        camera.push(2)
        assert camera.numbers[-2:] == [again["stc"]["frames_seen"], again["stc"]["frames_seen"] + 1]
        if again["stc"]["frames_seen"] == 4:  # the memory is that of the save
            assert again["choices"] == before[name]["choices"]


def test_saves_are_on_storage_of_all(nodes, model_folder: Path, tmp_path: Path) -> None:
    from stc_video.serve.config import ServeConfig
    from stc_video.serve.replicas import ModelChoice, start_replicas

    model = ModelChoice(str(model_folder), "cpu", threads=1)
    with pytest.raises(ValueError, match="--ray needs --save-folder"):
        start_replicas(model, ServeConfig(), nodes.address, 2, print)
    with pytest.raises(ValueError, match="--replicas 3: the cluster has room for 2"):
        start_replicas(model, ServeConfig(save_folder=tmp_path), nodes.address, 3, print)


def test_the_command_saves_at_its_end(model_folder: Path, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    options = (
        *("--model", model_folder, "--save-folder", tmp_path / "saves", "--port", port),
        *("--ray", "local", "--replicas", 1, "--threads", 1, "--tokens-per-frame", 6),
    )
    command = [sys.executable, "-m", "stc_video.cli", "serve", *map(str, options)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            until(lambda: "Serving" in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            camera = Camera(port, "door")
            camera.push(2)
            assert camera.outcomes == {"sent": 2, "seen": 2}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
    assert "Saved and ended." in log.read_text()
    assert (tmp_path / "saves" / "door" / "session.json").is_file()
