# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` with the plugin on: clients that misbehave, and a server that is killed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from small_engine import noise, partly
from vllm_checkpoints import SIDE, make_checkpoint

pytest.importorskip("vllm", reason="`make test-vllm` puts vLLM into an environment of its own")

NAME = "qwen3-vl"


class Server:
    """A server of vLLM in a process group of its own."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model, self.log = str(model), log
        metrics = log.with_suffix(".metrics")
        metrics.mkdir()
        environment = {
            **os.environ, "STC_VLLM": "threshold=0.9", "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
        }  # fmt: skip
        # `vllm serve` looks for a distribution called vllm, which that for CPUs is not.
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", self.model,
            "--host", "127.0.0.1", "--port", str(self.port), "--dtype", "float32",
            "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "4", *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, env=environment, stdout=log.open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        while not self._is_up():
            assert self.process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.5)

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/health") == ""
        return False

    def kill(self) -> None:
        """End all its processes at once, if it runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}") as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        lines = [line for line in self.get("/metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

    def request(self, frame: np.ndarray, uuid: str | None = None, **options: object) -> bytes:
        from PIL import Image

        data = io.BytesIO()
        Image.fromarray(frame).save(data, "PNG")
        url = "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
        picture = {"type": "image_url", "image_url": {"url": url}, "uuid": uuid}
        content = [picture, {"type": "text", "text": "?"}]
        body = {
            "model": self.model, "messages": [{"role": "user", "content": content}],
            "max_tokens": 8, "temperature": 0, "ignore_eos": True,
        }  # fmt: skip
        return json.dumps(body | ({"mm_processor_kwargs": options} if options else {})).encode()

    def ask(self, frame: np.ndarray, **options: object) -> str:
        """Return the answer about a frame; its ``uuid`` or other options may name a stream."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions",
            self.request(frame, **options),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return str(json.load(answer)["choices"][0]["message"]["content"])

    def vanish(self, frame: np.ndarray, **options: object) -> None:
        """Send a request and close the connection."""
        body = self.request(frame, **options)
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(head.encode() + body)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return make_checkpoint(NAME, folder / "model")


@pytest.fixture(scope="module")
def server(model: Path, folder: Path) -> Iterator[Server]:
    started = Server(model, folder / "first.log", "--trust-request-mm-kwargs")
    yield started
    started.kill()


def frame(seed: int) -> np.ndarray:
    return noise(SIDE[NAME], seed)


def test_the_log_says_what_it_is_attached_to(server):
    assert "StreamingQwen3VL: on" in server.log.read_text()


def test_a_named_frame_is_counted_and_answered_as_the_stock_one(server):
    before = server.metric("stc_tower_dense_total")
    expected = server.ask(frame(1))
    assert server.metric("stc_tower_dense_total") == before
    assert server.ask(frame(1), stc_stream="cam") == expected
    assert server.metric("stc_tower_dense_total") == before + 1
    assert server.metric("stc_tower_state_bytes") > 0


@pytest.mark.parametrize(
    "options",
    [
        {"uuid": "stc_stream:" + "x" * 10_000 + "/0"},
        {"stc_stream": "x" * 10_000},
        {"stc_stream": ["a"]},
    ],
)
def test_a_wrong_name_is_status_400(server, options):
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.ask(frame(2), **options)
    assert refused.value.code == 400
    assert "stc_stream: must be a text of 1 to 256 characters" in refused.value.read().decode()
    assert server.ask(frame(2))


def test_clients_that_vanish_leave_a_server_that_answers(server):
    expected = server.ask(frame(3))
    for at in range(5):
        server.vanish(frame(10 + at), stc_stream="ghost")
    assert server.ask(frame(3), stc_stream="ghost") == expected


def test_two_clients_of_one_name_at_once(server):
    expected = {seed: server.ask(frame(seed)) for seed in range(20, 26)}
    found: dict[int, str] = {}

    def client(seeds: range) -> None:
        for number, seed in enumerate(seeds):
            found[seed] = server.ask(frame(seed), uuid=f"stc_stream:shared/{number}")

    clients = [threading.Thread(target=client, args=(range(at, at + 3),)) for at in (20, 23)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert found == expected


def test_the_example_feeds_a_camera_and_gets_an_answer(server, folder):
    clip = folder / "clip.mp4"
    with av.open(clip, "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = SIDE[NAME]
        for number in range(6):
            shown = partly(frame(50), 51 + number)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        container.mux(stream.encode())
    names = [f"stc_tower_{name}_total" for name in ("dense", "cached", "ended")]
    before = [server.metric(name) for name in names]
    run = subprocess.run(
        [sys.executable, "docs/examples/vllm_camera.py", "--url",
         f"http://127.0.0.1:{server.port}/v1", "--name", "camera 1", "--fps", "4", str(clip)],
        input="What happens?\n", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip()
    dense, cached, ended = (
        server.metric(name) - past for name, past in zip(names, before, strict=True)
    )
    assert (dense, ended) == (1, 1)
    assert cached >= 5


def test_a_killed_server_starts_afresh(server, model, folder):
    """It is one that trusts nobody: there the uuid names a stream."""
    expected = server.ask(frame(30), uuid="stc_stream:cam/0")
    server.kill()
    again = Server(model, folder / "second.log")
    try:
        assert again.ask(frame(30), uuid="stc_stream:cam/0") == expected
        assert again.metric("stc_tower_dense_total") == 1
        with pytest.raises(urllib.error.HTTPError) as refused:
            again.ask(frame(31), stc_stream="cam")
        assert "--trust-request-mm-kwargs" in refused.value.read().decode()
    finally:
        again.kill()
