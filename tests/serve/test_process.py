# SPDX-License-Identifier: Apache-2.0
"""`stc serve` as a process: clients that vanish, signals, and what survives."""

from __future__ import annotations

import http.client
import json
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from clients import connect, connection_to, get
from pictures import events, jpeg, question
from waiting import wait_for
from websockets.exceptions import ConnectionClosedError

import stc_video.serve
from stc_video.cli.app import run_app

LONG = {"max_tokens": 20_000}


def ask(address: str, **rest: object) -> http.client.HTTPResponse:
    connection = connection_to(address)
    body, headers = json.dumps(question(**rest)), {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    response.connection = connection  # keeps it open
    return response


def push(address: str, frames: int, first: int = 0) -> None:
    with connect(f"ws://{address}/v1/streams/door/frames") as socket:
        for number in range(first, first + frames):
            socket.send(json.dumps({"timestamp": number}))
            socket.send(jpeg(number))
            assert json.loads(socket.recv())["event"] == "seen"


def answers(address: str, outcome: str) -> int:
    found = re.search(
        rf'stc_answers_total{{outcome="{outcome}"}} (\d+)', get(address, "/metrics")[1]
    )
    return int(found[1]) if found else 0


def test_vanished_clients_and_oversize_messages(start) -> None:
    service = start("--questions", 1, "--max-new-tokens", 20_000)
    address = service.address
    push(address, 2)

    made = events(ask(address, stream=True).read().decode())
    assert made[-1] == "[DONE]"
    assert made[-2]["choices"][0]["finish_reason"] == "length"

    # A reader of a streamed answer goes away: 20,000 tokens would take minutes.
    response = ask(address, stream=True, **LONG)
    while b"content" not in response.readline():
        pass
    response.connection.close()
    response.close()
    wait_for(lambda: answers(address, "stopped") == 1)

    # So does one that waits for the whole answer.
    connection = connection_to(address)
    body = json.dumps(question(**LONG))
    connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    time.sleep(0.3)  # in which it usually begins; it is counted whenever the client goes
    connection.close()
    wait_for(lambda: answers(address, "stopped") == 2)

    # A camera in the middle of everything: its stream goes on with the next one.
    with connect(f"ws://{address}/v1/streams/door/frames") as socket:
        socket.send(jpeg(5))
        socket.socket.close()
    wait_for(lambda: '"received":3,"seen":3' in get(address, "/v1/streams")[1])
    push(address, 1, first=6)

    # A message that is not even read.
    with connect(f"ws://{address}/v1/streams/door/frames") as socket:
        with suppress(ConnectionClosedError):
            socket.send(b"x" * (17 << 20))
        with pytest.raises(ConnectionClosedError):
            socket.recv()
    assert json.loads(ask(address).read())["stc"]["frames_seen"] == 4

    # The end stops the answer under way.
    response = ask(address, stream=True, **LONG)
    response.readline()
    assert service.end(signal.SIGINT) == 0
    assert b"[DONE]" in response.read()
    assert "Traceback" not in service.output


def test_killed_and_restarted_it_goes_on_from_the_last_save(start, tmp_path: Path) -> None:
    saves = tmp_path / "saves"
    service = start("--save-folder", saves, "--autosave", "0.2")
    push(service.address, 10)
    index = saves / "door" / "session.json"
    wait_for(lambda: "stc_saves_total 0" not in get(service.address, "/metrics")[1])
    wait_for(lambda: index.is_file() and _frames(saves) == 10)
    expected = json.loads(ask(service.address).read())
    # Killed while frames come and saves are written.
    with connect(f"ws://{service.address}/v1/streams/door/frames") as socket:
        for number in range(10, 14):
            socket.send(jpeg(number))
    assert service.end(signal.SIGKILL) == -signal.SIGKILL

    second = start("--save-folder", saves)
    seen = json.loads(ask(second.address).read())["stc"]["frames_seen"]
    assert 10 <= seen <= 14
    if seen == 10:
        again = json.loads(ask(second.address).read())
        assert again["choices"] == expected["choices"]
    push(second.address, 3, first=seen)
    # A clean end saves what the last autosave did not.
    assert second.end() == 0
    assert "Saved and ended." in second.output
    assert _frames(saves) == seen + 3


def _frames(saves: Path) -> int:
    state = json.loads((saves / "door" / "session.json").read_text())["state"]
    return dict(state["dict"])["session"]["fields"]["frames"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host", "0.0.0.0"], "can be reached from other machines, which needs a token"),
        (["--token", "short"], "the token must be 16 to 256"),
        (["--token-file", "/nowhere/token"], "No such file"),
        (["--host", "203.0.113.1", "--token", "x" * 20, "--port", "8"], "cannot listen on"),
        (["--max-fps", "0"], "--max-fps must be above 0"),
    ],
)
def test_bad_options_are_one_sentence(folder: Path, capsys, options, message, monkeypatch) -> None:
    monkeypatch.delenv("STC_SERVE_TOKEN", raising=False)
    assert run_app(["serve", "--model", str(folder), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert "Traceback" not in error


def test_without_the_extra_it_says_what_to_install(capsys, monkeypatch) -> None:
    monkeypatch.setattr(stc_video, "serve", stc_video.serve)  # what replaces it goes again
    for name in [name for name in sys.modules if name.startswith("stc_video.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run_app(["serve", "--model", "llava-onevision-tiny"]) == 2
    assert "pip install '.[serve]' in the checkout" in capsys.readouterr().err
