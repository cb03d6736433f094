# SPDX-License-Identifier: Apache-2.0
"""Every field of a chat completion does what the table in docs/serving.md says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from pictures import events, jpeg, push, question

from stc_video.serve.schema import ChatRequest

CHAT = "/v1/chat/completions"
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
#: of a request, by OpenAI's client 3.57
OPENAI = {
    "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model",
    "moderation", "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention", "reasoning_effort", "response_format", "safety_identifier", "seed",
    "service_tier", "stop", "store", "stream", "stream_options", "temperature", "tool_choice",
    "tools", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
}  # fmt: skip


class Row(NamedTuple):
    field: str
    effect: str
    accepted: list[str]
    refused: list[str]


def rows() -> list[Row]:
    """What the table says, a row per field."""
    made, spans = [], re.compile(r"`([^`]+)`")
    for line in DOCS.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            accepted, refused = spans.findall(cells[2]), spans.findall(cells[3])
            made += [Row(f, cells[1], accepted, refused) for f in spans.findall(cells[0])]
    return made


ROWS = rows()
ACCEPTED = [(row.field, value) for row in ROWS for value in row.accepted]
REFUSED = [(row.field, value) for row in ROWS for value in row.refused]
NEUTRAL = [
    (row.field, value)
    for row in ROWS
    if not row.effect.startswith("work")
    for value in [*row.accepted, "null"]
]


@pytest.fixture(scope="module")
def door(service) -> Iterator[TestClient]:
    """A service with a stream of one frame."""
    with service(questions_per_minute=100_000) as (client, _):
        with client.websocket_connect("/v1/streams/door/frames") as socket:
            push(socket, jpeg())
            socket.receive_json()
        yield client


def ask(client: TestClient, **fields: Any) -> Any:
    return client.post(CHAT, json=question() | fields)


def test_the_table_is_complete() -> None:
    fields = [row.field for row in ROWS]
    assert sorted(fields) == sorted(ChatRequest.model_fields)
    assert set(fields) == OPENAI | {"video_stream"}
    assert {row.effect.split(":")[0].split(",")[0].split(";")[0] for row in ROWS} == {
        "works", "work", "not offered", "no effect",
    }  # fmt: skip
    assert all(row.refused for row in ROWS)


@pytest.mark.parametrize(("field", "value"), ACCEPTED)
def test_what_the_table_accepts_is_answered(door, field: str, value: str) -> None:
    response = ask(door, **{"max_tokens": 2, field: json.loads(value)})
    assert response.status_code == 200, response.json()


@pytest.mark.parametrize(("field", "value"), NEUTRAL)
def test_a_field_that_asks_for_nothing_changes_nothing(door, field: str, value: str) -> None:
    answer = ask(door, **{field: json.loads(value)}).json()
    assert answer["choices"] == ask(door).json()["choices"]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_what_the_table_refuses_names_the_field(door, field: str, value: str) -> None:
    response = ask(door, **{field: json.loads(value)})
    assert response.status_code == (404 if field in ("model", "video_stream") and "7" not in value
                                    else 400), response.text  # fmt: skip
    error = response.json()["error"]
    assert (error["type"], set(error)) == (
        "invalid_request_error", {"message", "type", "code", "param"},
    )  # fmt: skip
    assert field == "video_stream" or (error["param"] or "").split(".")[0] == field
    assert "Value error" not in error["message"]
    # A sentence: what, what is allowed, what was sent.
    if field not in ("model", "video_stream"):
        assert error["message"].startswith(field)
    row = next(row for row in ROWS if row.field == field)
    if row.effect.startswith("not offered"):
        assert error["code"] == "unsupported_value"
        assert f"got {value}" in error["message"]
        assert all(allowed in error["message"] for allowed in ["null", *row.accepted[:1]])


@pytest.mark.parametrize("field", [f for f in ChatRequest.model_fields if f != "messages"])
def test_a_null_is_a_field_left_out(door, field: str) -> None:
    assert ask(door, **{"max_tokens": 2, field: None}).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"top_k": 5}, "top_k: there is no such field"),
        ({"Stop": "a"}, "Stop: there is no such field"),
        ({"messages": [{"role": "user", "content": "a", "cats": 3}]}, "messages.0.cats: there is"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content: must have text parts only, got one of type image_url: a picture "
            "cannot come with a question, push it to the stream as a frame",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            'must have parts {"type": "text", "text": "..."} only, got {"type": "input_audio"}',
        ),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages.0.content: must be a text or a list of text parts, got null",
        ),
        ({"messages": None}, "messages: Input should be a valid list, got null"),
        ({"messages": [None]}, "messages.0: "),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"stop": {"a": "{b}"}}, 'none of them empty, got {"a": "{b}"}'),
        ({"logit_bias": {"{0}": 1}}, 'or null or {}; nothing else is offered here, got {"{0}": 1}'),
        ({"temperature": "x" * 500}, "temperature: Input should be a valid number, got"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "include_obfuscation"),
    ],
)
def test_a_refusal_says_what_is_wrong(door, body: dict[str, Any], message: str) -> None:
    response = ask(door, **body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert len(response.json()["error"]["message"]) < 250


def test_bodies_that_are_none_are_refused(door) -> None:
    for content, message in [
        (b"{", "the body is no JSON"),
        (b"[]", "the body: "),
        (b"", "the body: "),
    ]:
        response = door.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith(message)
    for value in (b"NaN", b"Infinity", b"1e999"):
        body = b'{"messages": [{"role": "user", "content": "a"}], "temperature": ' + value + b"}"
        response = door.post(CHAT, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 400, value


def test_what_an_answer_had_can_be_sent_back(door) -> None:
    first = ask(door).json()["choices"][0]["message"]
    nulls = dict.fromkeys(("refusal", "annotations", "audio", "function_call", "tool_calls"))
    told = [*question()["messages"], first | nulls, {"role": "user", "content": "and now?"}]
    if not first["content"].strip():
        told[1]["content"] = "a cat"
    assert ask(door, messages=told).status_code == 200


def test_an_address_takes_no_parameters_and_names_one_stream(door) -> None:
    response = door.post(f"{CHAT}?seed=3", json=question())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "seed"
    path = "/v1/streams/door/chat/completions"
    assert door.post(path, json=question(video_stream="door")).status_code == 200
    response = door.post(path, json=question(video_stream="roof"))
    assert response.status_code == 400
    assert "the address names 'door', got 'roof'" in response.json()["error"]["message"]


def test_usage_comes_only_when_asked_for(door) -> None:
    never = [None, {}, {"include_usage": None}, {"include_usage": False}]
    for options, usages in [*((one, 0) for one in never), ({"include_usage": True}, 1)]:
        told = events(ask(door, stream=True, stream_options=options).text)
        assert sum("usage" in event for event in told if event != "[DONE]") == usages


def test_models_are_found_under_each_base_address(door) -> None:
    for base in ("/v1", "/v1/streams/door"):
        [entry] = door.get(f"{base}/models").json()["data"]
        assert entry["id"] == "tiny-llava"
        assert door.get(f"{base}/models/tiny-llava").json() == entry
        response = door.get(f"{base}/models/org/other")
        assert response.status_code == 404
        assert response.json()["error"]["message"] == "the model is 'tiny-llava', got 'org/other'"
    assert door.get("/v1/streams/roof/models").status_code == 404
    assert door.get("/v1/streams/roof/models/tiny-llava").status_code == 404


def test_a_message_with_an_unknown_field_is_an_error(door) -> None:
    with door.websocket_connect("/v1/streams/other/frames") as socket:
        for text in ({"timestamp": 1, "quality": 2}, {"time": 1}, {}, [1], None):
            socket.send_text(json.dumps(text))
            push(socket, jpeg())
            told = socket.receive_json()
            assert told["event"] == "error"
            assert '{"timestamp": seconds}' in told["message"]
            assert socket.receive_json()["event"] == "seen"
    assert door.delete("/v1/streams/other").json()["deleted"]
