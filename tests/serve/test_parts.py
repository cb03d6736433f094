# SPDX-License-Identifier: Apache-2.0
"""Several services on one folder, each with a part of the streams; Ray is not needed here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pictures import jpeg, push, question
from starlette.websockets import WebSocketDisconnect

from stc_video.errors import FolderInUseError
from stc_video.serve.app import make_app
from stc_video.serve.config import ServeConfig
from stc_video.serve.parts import Part, part_of, stream_in, take_part
from stc_video.serve.service import Service
from stc_video.serve.together import Together, merge_metrics

YARD, DOOR = "yard", "door"  # of part 0 and of part 1


def test_a_name_has_one_part_for_ever() -> None:
    assert [part_of(name, 2) for name in (YARD, DOOR)] == [0, 1]
    assert {part_of(f"camera-{number}", 5) for number in range(50)} == set(range(5))
    assert Part(1, 2).has(DOOR)
    assert not Part(0, 2).has(DOOR)
    assert stream_in("/v1/streams/door/frames") == stream_in("/v1/streams/door") == DOOR
    assert stream_in("/v1/streams") is stream_in("/metrics") is None


def test_parts_are_taken_once_and_free_again(tmp_path: Path) -> None:
    first, lock = take_part(tmp_path, 2, 0)
    second, _kept = take_part(tmp_path, 2, 0)
    assert (first, second) == (Part(0, 2), Part(1, 2))
    with pytest.raises(FolderInUseError, match="all 2 parts of"):
        take_part(tmp_path, 2, 0)
    lock.release()
    assert take_part(tmp_path, 2, 0)[0] == first


@pytest.fixture
def replicas(chat, tmp_path: Path) -> Iterator[list[TestClient]]:
    """Two replicas in this process, which ask each other directly; the second can be away."""
    services: dict[int, Service | None] = {}

    async def ask_all(method: str) -> dict[int, object]:
        ask = {"metrics_text": lambda one: one.metrics.text().decode(),
               "list_streams": lambda one: one.hub.entries()}[method]  # fmt: skip
        return {n: None if one is None else ask(one) for n, one in services.items()}

    def start(number: int) -> TestClient:
        part = Part(number, 2)
        config = ServeConfig(save_folder=tmp_path, tokens_per_frame=6, part=part)
        # A model can be accelerated once, and each replica has its own.
        service = services[number] = Service(copy.deepcopy(chat), config)
        service.start()
        app = make_app(service, lambda inner: Together(inner, part, ask_all))
        return TestClient(app, base_url="http://127.0.0.1", headers={"Host": "127.0.0.1"})

    with ExitStack() as stack:
        made = [stack.enter_context(start(number)) for number in (0, 1)]
        made.append(services)
        yield made


def test_each_replica_has_its_streams_and_answers_for_all(replicas, tmp_path: Path) -> None:
    first, second, services = replicas
    for client, name in ((first, YARD), (second, DOOR)):
        with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
            push(socket, jpeg())
            assert socket.receive_json()["event"] == "seen"
    for client in (first, second):
        assert [entry["id"] for entry in client.get("/v1/streams").json()["data"]] == [DOOR, YARD]
        text = client.get("/metrics").text
        for line in (
            'stc_frames_total{outcome="seen",replica="0",stream="yard"} 1.0',
            'stc_frames_total{outcome="seen",replica="1",stream="door"} 1.0',
            'stc_replica_up{replica="1"} 1.0',
        ):
            assert line in text
        assert client.get("/healthz").json() == {"status": "ok"}
    # A stream of the other one is not begun here.
    assert first.get(f"/v1/streams/{DOOR}/models").status_code == 421
    with pytest.raises(WebSocketDisconnect), first.websocket_connect(f"/v1/streams/{DOOR}/frames"):
        pass
    # A question finds its stream.
    path = "/v1/chat/completions"
    here = first.post(path, json=question(video_stream=YARD))
    assert here.json()["stc"]["frames_seen"] == 1
    sent_on = first.post(path, json=question(video_stream=DOOR), follow_redirects=False)
    assert sent_on.status_code == 307
    assert sent_on.headers["location"] == f"/v1/streams/{DOOR}/chat/completions"
    assert second.post(sent_on.headers["location"], json=question()).json()["stc"]
    unnamed = first.post(path, json=question())
    assert unnamed.json()["error"]["message"].endswith("there are: door, yard")
    assert first.post(path, content=b"{").status_code == 400
    second.delete(f"/v1/streams/{DOOR}")
    assert first.post(path, json=question()).json()["stc"]["frames_seen"] == 1  # the only one
    # What a replica that is away has is not left out in silence.
    services[1] = None
    assert first.get("/v1/streams").status_code == 503
    assert first.post(path, json=question()).status_code == 503
    assert 'stc_replica_up{replica="1"} 0.0' in first.get("/metrics").text


def test_saves_are_resumed_by_whose_part_they_are(chat, tmp_path: Path) -> None:
    whole = Service(copy.deepcopy(chat), ServeConfig(save_folder=tmp_path, tokens_per_frame=6))
    whole.start()
    for name in (YARD, DOOR):
        whole.hub.get_or_make(name).session.push(np.zeros((48, 64, 3), np.uint8))
    whole.close()
    for number, name in enumerate((YARD, DOOR)):
        config = ServeConfig(save_folder=tmp_path, tokens_per_frame=6, part=Part(number, 2))
        service = Service(copy.deepcopy(chat), config)
        service.start()
        assert [stream.name for stream in service.hub.streams()] == [name]
        service.close()


def test_metrics_of_all_replicas_are_one_text() -> None:
    text = '# HELP a_total Things.\n# TYPE a_total counter\na_total{x="1"} 2.0\n'
    assert merge_metrics({0: text, 1: text, 2: None}).decode().splitlines() == [
        "# HELP a_total Things.",
        "# TYPE a_total counter",
        'a_total{replica="0",x="1"} 2.0',
        'a_total{replica="1",x="1"} 2.0',
        "# HELP stc_replica_up Whether a replica answers.",
        "# TYPE stc_replica_up gauge",
        'stc_replica_up{replica="0"} 1.0',
        'stc_replica_up{replica="1"} 1.0',
        'stc_replica_up{replica="2"} 0.0',
    ]
