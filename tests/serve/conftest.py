# SPDX-License-Identifier: Apache-2.0
"""A small model, the service in this process, and the service as a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "session"))  # tiny_llava

from fastapi.testclient import TestClient
from tiny_llava import make_model, make_tokenizer
from waiting import wait_for

from stc_video.loading.video_llm import ChatModel, load_chat_model
from stc_video.memory import RekvConfig
from stc_video.serve.app import make_app
from stc_video.serve.config import ServeConfig
from stc_video.serve.hub import StreamHub
from stc_video.serve.service import Service

MEMORY = RekvConfig(window_tokens=96, retrieve_tokens=96, host_bytes=1 << 20, slab_bytes=1 << 18)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself."""
    made = tmp_path_factory.mktemp("models") / "tiny-llava"
    model = make_model()
    model.generation_config.eos_token_id = None
    model.config.text_config.eos_token_id = None
    model.save_pretrained(made)
    make_tokenizer().save_pretrained(made)
    return made


@pytest.fixture(scope="session")
def chat(folder: Path) -> ChatModel:
    return load_chat_model(folder)


@pytest.fixture(scope="module")  # so that a file may have a model of its own
def service(chat: ChatModel) -> Callable[..., AbstractContextManager[tuple[TestClient, StreamHub]]]:
    """Makes services in this process: ``with service(max_streams=2) as (client, hub):``."""

    @contextmanager
    def make(host: str = "127.0.0.1", **settings: object) -> Iterator[tuple[TestClient, StreamHub]]:
        config = ServeConfig(**{"memory": MEMORY, "tokens_per_frame": 6, **settings})
        made = Service(chat, config)
        try:
            made.start()
            # Its WebSockets know no base address.
            names = {"base_url": f"http://{host}", "headers": {"Host": host}}
            with TestClient(make_app(made), **names) as client:
                yield client, made.hub
        finally:
            made.close()

    return make


class ServiceProcess:
    """`stc serve` in a process of its own."""

    def __init__(self, forks: Forks, output: Path, *options: object) -> None:
        self._forks, self._output = forks, output
        self.code: int | None = None
        self.pid = forks.ask(start=[str(option) for option in options], output=str(output))
        found = wait_for(
            lambda: re.search(r"at http://([\d.]+:\d+)", self.output), lambda: self.output
        )
        self.address = found[1]

    @property
    def output(self) -> str:
        return self._output.read_text() if self._output.exists() else ""

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit code."""
        if self.code is None:
            os.kill(self.pid, number)
            self.code = self._forks.ask(wait=self.pid)
        return self.code


class Forks:
    """A process that has imported everything and forks services."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("forked_services.py")
        self._process = subprocess.Popen(
            [sys.executable, script, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NO_COLOR": "1"},
        )

    def ask(self, **wish: object) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(wish) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def forks(folder: Path) -> Iterator[Forks]:
    made = Forks(folder)
    yield made
    made.close()


@pytest.fixture
def start(folder: Path, forks: Forks, tmp_path: Path) -> Iterator[Callable[..., ServiceProcess]]:
    """Starts services as processes, and ends what is left of them."""
    made: list[ServiceProcess] = []
    sizes = ("--port", 0, "--tokens-per-frame", 6, "--memory-mb", 1, "--threads", 1)

    def make(*options: object) -> ServiceProcess:
        output = tmp_path / f"service-{len(made)}.log"
        made.append(ServiceProcess(forks, output, "--model", folder, *sizes, *options))
        return made[-1]

    yield make
    for service in made:
        service.end(signal.SIGKILL)
