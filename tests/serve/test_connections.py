# SPDX-License-Identifier: Apache-2.0
"""Connections of a service in a process of its own: unfinished, idle, too many."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import struct
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from clients import connect, get
from pictures import jpeg
from waiting import PATIENCE, wait_for
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from stc_video.serve import logs
from stc_video.serve.config import ServeConfig
from stc_video.serve.server import _provide_descriptors

TOKEN = "a-long-enough-token.1"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
BEGINNINGS = {
    "nothing": b"",
    "headers": b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
    "body": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{",
    "body with the token": b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    b"Content-Length: 9\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n{",
}


def status(address: str, path: str, headers: dict[str, str] | None = None) -> int:
    return get(address, path, headers)[0]


def raw(address: str, data: bytes) -> socket.socket:
    host, port = address.split(":")
    made = socket.create_connection((host, int(port)), timeout=PATIENCE)
    made.sendall(data)
    return made


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_unfinished_requests_shut_nobody_out(start, kind: str) -> None:
    service = start("--token", TOKEN)
    with ExitStack() as stack:
        first = stack.enter_context(raw(service.address, BEGINNINGS[kind]))
        for _ in range(200):
            stack.enter_context(raw(service.address, BEGINNINGS[kind]))
        assert status(service.address, "/healthz") == 200
        assert status(service.address, "/v1/streams", BEARER) == 200
        with connect(
            f"ws://{service.address}/v1/streams/door/frames", additional_headers=BEARER
        ) as camera:
            camera.send(jpeg())
            assert json.loads(camera.recv())["event"] == "seen"
        # The oldest has made room.
        assert first.recv(100).startswith((b"HTTP/1.1 503", b"HTTP/1.1 401"))
        assert service.end() == 0  # it waits for none of them
    assert len(service.output) < 10_000


def test_a_whole_request_in_a_burst_of_connections_is_read(start) -> None:
    """They are accepted all at once, and those that came first have not been read by then."""
    service = start()
    os.kill(service.pid, signal.SIGSTOP)
    with ExitStack() as stack:
        request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        whole = stack.enter_context(raw(service.address, request))
        for _ in range(300):
            stack.enter_context(raw(service.address, b""))
        os.kill(service.pid, signal.SIGCONT)
        assert whole.recv(100).startswith(b"HTTP/1.1 200")


def test_a_request_must_be_whole_in_time(start) -> None:
    service = start()
    with raw(service.address, BEGINNINGS["headers"]) as slow, raw(service.address, b"") as idle:
        sent = 0
        while not select.select([slow], [], [], 0.5)[0]:  # until it is answered
            slow.sendall(b"x")
            sent += 1
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
        assert idle.recv(100).startswith(b"HTTP/1.1 408")
        assert 0 < sent < 2 * ServeConfig().request_seconds + 2  # no byte won it more time
        assert status(service.address, "/healthz") == 200


def test_websockets_are_counted_and_health_is_answered(start) -> None:
    service = start()
    kinds = ["frames", *["watch"] * 8]
    paths = [f"/v1/streams/{stream}/{kind}" for stream in range(11) for kind in kinds]
    with ExitStack() as stack:
        for path in paths[:96]:
            stack.enter_context(connect(f"ws://{service.address}{path}"))
        with pytest.raises(InvalidStatus) as error:
            connect(f"ws://{service.address}{paths[96]}")
        assert error.value.response.status_code == 503
        assert status(service.address, "/v1/streams") == 503
        assert status(service.address, "/healthz") == 200
    wait_for(lambda: status(service.address, "/v1/streams") == 200)
    assert 'reason="connections"' in get(service.address, "/metrics")[1]


def test_a_message_that_never_ends_is_ended(start) -> None:
    service = start()
    frames = f"ws://{service.address}/v1/streams/door/frames"
    with connect(frames) as camera:
        camera.send(jpeg())
        assert json.loads(camera.recv())["event"] == "seen"
        with connect(f"ws://{service.address}/v1/streams/door/watch") as watcher:
            head = b"\x82\xff" + struct.pack(">Q", 8 << 20) + bytes(4)
            watcher.socket.sendall(head + bytes(1 << 16))
            with pytest.raises(ConnectionClosedError) as error:
                watcher.recv(timeout=PATIENCE)
            assert error.value.rcvd.code == 1009
        # A picture in many parts is one; without an end it is none.
        picture = jpeg(1)
        camera.send(picture[i : i + 100] for i in range(0, len(picture), 100))
        assert json.loads(camera.recv())["event"] == "seen"
        camera.socket.sendall(b"\x02\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 1_100)
        with pytest.raises(ConnectionClosedError) as error:
            camera.recv(timeout=PATIENCE)
        assert error.value.rcvd.code == 1009


def test_nobody_can_flood_the_log(start) -> None:
    service = start()
    for _ in range(300):
        with raw(service.address, b"\x16\x03 nonsense\r\n\r\n") as broken:
            broken.recv(100)
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    for _ in range(100):
        with raw(service.address, head) as upgrade:
            upgrade.recv(100)
    assert service.end() == 0
    assert service.output.count("Invalid HTTP request") <= 8
    assert len(service.output) < 10_000


def test_what_was_left_out_of_the_log_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    few, now = logs.FewOfAKind(), [0.0]
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def passes(line: int) -> str | None:
        record = logging.LogRecord("a", 30, "file.py", line, "broken %s", ("x" * 9000,), None)
        return record.getMessage() if few.filter(record) else None

    assert [passes(1) is not None for _ in range(20)] == [True] * 5 + [False] * 15
    assert passes(2) is not None  # another kind
    now[0] = 11.0
    assert passes(1).endswith("xxx (15 more like this were left out)")
    assert passes(1) is None


def test_more_connections_than_open_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="1000000000 connections need 1000001344 open files"):
        _provide_descriptors(ServeConfig(max_connections=10**9))
    _provide_descriptors(ServeConfig())
