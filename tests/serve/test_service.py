# SPDX-License-Identifier: Apache-2.0
"""Pushing, asking and counting, through the app itself."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import bomb, events, jpeg, push, question
from PIL import Image
from starlette.websockets import WebSocketDisconnect
from waiting import PATIENCE

from stc_video import PlainConfig, StreamingSession, WindowConfig
from stc_video.serve.pictures import decode_picture

FRAMES = "/v1/streams/door/frames"
CHAT = "/v1/chat/completions"


def called(owner: object, name: str, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that is set when a method is called."""
    event, method = threading.Event(), getattr(owner, name)

    def noted(*args: object, **kwargs: object) -> object:
        event.set()
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, noted)
    return event


def test_frames_are_seen_and_asked_about(service, chat) -> None:
    frames = [jpeg(seed) for seed in range(5)]
    with service() as (client, hub), client.websocket_connect(FRAMES) as socket:
        for number, frame in enumerate(frames):
            push(socket, frame, timestamp=0.5 * number)
            told = socket.receive_json()
            assert (told["event"], told["frame"], told["number"]) == ("seen", number, number)
            assert (told["time"], told["tokens_kept"]) == (0.5 * number, 6)
        assert (told["received"], told["seen"], told["dropped"]) == (5, 5, 0)
        answer = client.post(CHAT, json=question()).json()
        settings = hub._settings()
        streams = client.get("/v1/streams").json()["data"]
    # The same answer as from the library.
    with StreamingSession(chat.model, chat.processor, tokens_per_frame=6, **settings) as session:
        for frame in frames:
            session.push(decode_picture(frame, 10_000))
        expected = session.ask(question()["messages"][0]["content"], max_new_tokens=6)
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["prompt_tokens"] == expected.context_tokens
    assert [f["number"] for f in answer["stc"]["retrieved"]] == [0, 1, 2, 3, 4]
    assert answer["stc"]["retrieved"][3]["time"] == 1.5
    assert [(s["id"], s["seen"]) for s in streams] == [("door", 5)]
    assert not hasattr(chat.model, "stc")  # restored


@pytest.mark.parametrize("memory", [PlainConfig(), WindowConfig(2)])
def test_other_memories_answer_as_in_the_library(service, chat, memory) -> None:
    frames = [jpeg(seed) for seed in range(4)]
    with service(memory=memory) as (client, _), client.websocket_connect(FRAMES) as socket:
        for frame in frames:
            push(socket, frame)
            socket.receive_json()
        answer = client.post(CHAT, json=question()).json()
    settings = {"memory": memory, "prefill_chunk": 8, "tokens_per_frame": 6}
    with StreamingSession(chat.model, chat.processor, **settings) as session:
        for frame in frames:
            session.push(decode_picture(frame, 10_000))
        expected = session.ask(question()["messages"][0]["content"], max_new_tokens=6)
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["usage"]["prompt_tokens"] == expected.context_tokens


def test_a_question_before_the_first_frame_is_refused(service) -> None:
    with service() as (client, _), client.websocket_connect(FRAMES) as socket:
        for streamed in (False, True):
            answer = client.post(CHAT, json=question(stream=streamed))
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_frames")
            assert answer.json()["error"]["message"] == "no frame of 'door' has been seen yet"
        push(socket, jpeg())
        socket.receive_json()
        assert client.post(CHAT, json=question()).status_code == 200
        assert 'outcome="failed"' not in client.get("/metrics").text


def test_streamed_and_whole_answers_are_the_same(service) -> None:
    with service() as (client, _), client.websocket_connect(FRAMES) as socket:
        push(socket, jpeg())
        socket.receive_json()
        whole = client.post(CHAT, json=question()).json()
        options = {"include_usage": True}
        path = "/v1/streams/door/chat/completions"
        response = client.post(path, json=question(stream=True, stream_options=options))
        assert response.headers["content-type"].startswith("text/event-stream")
        *pieces, last, usage, done = events(response.text)
        by_field = client.post(CHAT, json=question(video_stream="door")).json()
    text = "".join(piece["choices"][0]["delta"]["content"] for piece in pieces)
    assert text.strip() == whole["choices"][0]["message"]["content"]
    assert last["choices"][0]["finish_reason"] == "length"
    assert last["stc"]["frames_seen"] == 1
    assert usage["usage"] == whole["usage"]
    assert usage["choices"] == []
    assert done == "[DONE]"
    assert {piece["object"] for piece in pieces} == {"chat.completion.chunk"}
    assert by_field["choices"] == whole["choices"]


def test_a_conversation_is_taken_as_the_client_tells_it(service, chat) -> None:
    told = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "who?"}]},
        {"role": "assistant", "content": "a cat"},
        {"role": "user", "content": "where?"},
    ]
    with service() as (client, hub), client.websocket_connect(FRAMES) as socket:
        push(socket, jpeg())
        socket.receive_json()
        answer = client.post(CHAT, json={"messages": told, "max_tokens": 4}).json()
        session = hub.get("door").session
        history = [("be brief\nwho?", "a cat")]
        expected = session.ask("where?", history=history, max_new_tokens=4).text
        other = session.ask("where?", max_new_tokens=4).text
    assert answer["choices"][0]["message"]["content"] == expected != other


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, 400, "user and assistant must"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "say something"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            "messages",
        ),
        ({"temperature": 9}, 400, "temperature"),
        ({"n": 2}, 400, "n: "),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"model": "gpt"}, 404, "the model is 'tiny-llava', got 'gpt'"),
        ({"video_stream": "roof"}, 404, "there is no stream 'roof'; there are: none"),
        ({}, 400, "must name a stream (video_stream); there are: none"),
    ],
)
def test_a_bad_question_is_refused_in_one_sentence(service, change, status, message) -> None:
    with service() as (client, _):
        response = client.post(CHAT, json=question() | change)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_what_the_model_is_not_given_as_json_is_refused(service) -> None:
    with service() as (client, _):
        response = client.post(CHAT, content=b"{", headers={"content-type": "application/json"})
        assert response.status_code == 400
        large = question("x" * 300_000)
        response = client.post(CHAT, json=large)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"

        def unannounced():
            for _ in range(300):
                yield b"x" * 1024

        assert client.post(CHAT, content=unannounced()).status_code == 413
        assert client.get("/healthz").json() == {"status": "ok"}


def test_malformed_frames_are_counted_and_change_nothing(service) -> None:
    good, cut = jpeg(1), jpeg(1)[:900]
    bad = [b"", b"words", cut, jpeg(0, (40, 300)), bomb(60_000, 60_000), jpeg(2) * 60]
    limits = {"max_frame_pixels": 10_000, "max_frame_bytes": 100_000}
    with service(**limits) as (client, hub), client.websocket_connect(FRAMES) as socket:
        push(socket, good)
        socket.receive_json()
        session = hub.get("door").session
        before = session.logits("what?")
        told = []
        for data in bad:
            push(socket, data)
            told.append(socket.receive_json())
        for text in ("no json", json.dumps({"timestamp": "now"})):
            socket.send_text(text)
            told.append(socket.receive_json())
        assert torch.equal(session.logits("what?"), before)
        push(socket, good)
        last = socket.receive_json()
    reasons = [t.get("reason") for t in told]
    assert reasons == ["malformed"] * 5 + ["too_large", None, None]
    assert [t["frame"] for t in told[:6]] == [1, 2, 3, 4, 5, 6]
    assert "must be a JPEG or PNG" in told[1]["message"]
    assert "is damaged" in told[2]["message"]
    assert "at most 10000 pixels, got 40 x 300" in told[3]["message"]
    assert "at most 10000 pixels, got 60000 x 60000" in told[4]["message"]
    assert "at most 100000 bytes" in told[5]["message"]
    assert told[6]["event"] == told[7]["event"] == "error"
    assert (last["event"], last["seen"], last["received"]) == ("seen", 2, 8)
    assert last["rejected"] == {"malformed": 5, "too_large": 1}


def test_sixteen_bits_and_a_turned_picture() -> None:
    ramp = np.repeat(np.linspace(0, 65535, 64).astype(np.uint16)[None], 48, 0)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    seen = decode_picture(file.getvalue(), 10_000)
    assert np.array_equal(seen, np.repeat((ramp >> 8).astype(np.uint8)[..., None], 3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("RGB", "L", "CMYK"):
        file = io.BytesIO()
        Image.new(mode, (8, 4)).save(file, "JPEG", exif=exif)
        assert decode_picture(file.getvalue(), 10_000).shape == (8, 4, 3)


def test_timestamps_that_go_back_are_taken_and_said(service) -> None:
    with service() as (client, hub), client.websocket_connect(FRAMES) as socket:
        for timestamp in (5.0, 3.0, 4.0):
            push(socket, jpeg(), timestamp)
        told = [socket.receive_json() for _ in range(4)]
        assert hub.get("door").session.stats().times_back == 1
    [warning] = [message for message in told if message["event"] == "warning"]
    assert warning["message"].startswith("timestamps went back from 5.000 s to 3.000 s")
    seen = [message["time"] for message in told if message["event"] == "seen"]
    assert seen == [5.0, 3.0, 4.0]


def test_a_slow_model_drops_the_oldest_and_every_frame_is_counted(service, monkeypatch) -> None:
    with service(queue_frames=3) as (client, hub), client.websocket_connect(FRAMES) as socket:
        push(socket, jpeg())
        socket.receive_json()
        stream = hub.get("door")
        with stream.session._push_lock:  # the model is busy
            is_under_way = called(stream.session, "push", monkeypatch)
            push(socket, jpeg(1), timestamp=1)
            assert is_under_way.wait(PATIENCE)
            for seed in range(2, 8):
                push(socket, jpeg(seed), timestamp=seed)
            told = [socket.receive_json() for _ in range(3)]
            assert stream.waiting == 3
        told += [socket.receive_json() for _ in range(4)]
        metrics = client.get("/metrics").text
    # One was under way, three could wait, so the three before these went.
    assert [t["frame"] for t in told if t["event"] == "dropped"] == [2, 3, 4]
    assert [t["frame"] for t in told if t["event"] == "seen"] == [1, 5, 6, 7]
    assert [t["time"] for t in told if t["event"] == "seen"] == [1, 5, 6, 7]
    last = told[-1]
    assert (last["received"], last["seen"], last["dropped"], last["waiting"]) == (8, 5, 3, 0)
    assert 'stc_frames_total{outcome="dropped",stream="door"} 3.0' in metrics
    assert 'stc_frames_total{outcome="seen",stream="door"} 5.0' in metrics
    assert "stc_frame_seconds_count 5.0" in metrics
    assert 'stc_memory_bytes{store="host",stream="door"}' in metrics


def test_rates_and_numbers_are_limited(service) -> None:
    limits = {"max_streams": 2, "max_fps": 0.001, "questions_per_minute": 1}
    with service(**limits) as (client, hub):
        with client.websocket_connect(FRAMES) as socket:
            for _ in range(2):
                push(socket, jpeg())
            told = [socket.receive_json() for _ in range(2)]
            assert {t.get("reason") for t in told} == {None, "rate"}
            with client.websocket_connect(FRAMES) as second:
                assert "another client pushes to 'door'" in second.receive_json()["message"]
        with client.websocket_connect("/v1/streams/roof/frames"):
            pass
        for name, code in [
            ("more", "too_many_streams"),
            (".hidden", "bad_name"),
            ("a b", "bad_name"),
        ]:
            with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
                assert socket.receive_json()["code"] == code
                with pytest.raises(WebSocketDisconnect) as error:
                    socket.receive_json()
                assert error.value.code == 1013
        ask = "/v1/streams/door/chat/completions"
        assert client.post(ask, json=question()).status_code == 200
        response = client.post(ask, json=question())
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert client.delete("/v1/streams/door").json()["deleted"]
        assert [stream.name for stream in hub.streams()] == ["roof"]
        assert client.delete("/v1/streams/door").status_code == 404


def test_too_many_questions_at_a_time_are_refused(service, monkeypatch) -> None:
    with service(max_questions=1, max_waiting=0) as (client, hub):
        with client.websocket_connect(FRAMES) as socket:
            push(socket, jpeg())
            socket.receive_json()
        found = []
        first = threading.Thread(
            target=lambda: found.append(client.post(CHAT, json=question()).status_code)
        )
        session = hub.get("door").session
        is_taken = called(session, "ask", monkeypatch)
        with session._memory_lock:  # the first cannot begin
            first.start()
            assert is_taken.wait(PATIENCE)
            response = client.post(CHAT, json=question())
        first.join()
    assert response.status_code == 429
    assert "too many questions" in response.json()["error"]["message"]
    assert found == [200]


def test_who_watches_gets_pictures_and_masks(service) -> None:
    with service() as (client, _), client.websocket_connect(FRAMES) as socket:
        push(socket, jpeg(0))
        socket.receive_json()
        with client.websocket_connect("/v1/streams/door/watch") as watcher:
            for seed in (1, 1):
                push(socket, jpeg(seed))
                facts, picture = watcher.receive_json(), watcher.receive_bytes()
                assert picture == jpeg(seed)
        with client.websocket_connect("/v1/streams/nowhere/watch") as other:
            assert "there is no stream 'nowhere'" in other.receive_json()["message"]
    assert len(facts["kept"]) == 6
    assert (facts["grid"], facts["feature_grid"]) == ([8, 8], [4, 4])
    assert facts["kind"] == "unchanged"
    assert facts["cost"] == 0


def test_streams_are_saved_and_resumed(service, tmp_path: Path) -> None:
    with service(save_folder=tmp_path) as (client, hub):
        for name in ("door", "roof"):
            with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
                for seed in range(9):
                    push(socket, jpeg(seed))
                    socket.receive_json()
        before = hub.get("door").session.logits("what?")
        hub.save()
        assert hub.saves == 2
        hub.save()  # nothing has changed
        assert hub.saves == 2
    with service(save_folder=tmp_path, max_streams=3) as (client, hub):
        assert [stream.name for stream in hub.streams()] == ["door", "roof"]
        assert torch.equal(hub.get("door").session.logits("what?"), before)
        client.delete("/v1/streams/roof")
    with service(save_folder=tmp_path) as (_, hub):
        assert [stream.name for stream in hub.streams()] == ["door"]
    with (
        pytest.raises(ValueError, match=r"door cannot be resumed .*settings must be"),
        service(save_folder=tmp_path, prefill_chunk=3),
    ):
        pass
    with service(save_folder=tmp_path) as (_, hub):  # nothing was lost by that
        assert torch.equal(hub.get("door").session.logits("what?"), before)


def test_a_frame_that_fails_does_not_end_the_stream(service, monkeypatch) -> None:
    with service() as (client, hub), client.websocket_connect(FRAMES) as socket:
        push(socket, jpeg(0))
        socket.receive_json()
        session = hub.get("door").session
        with monkeypatch.context() as broken:
            broken.setattr(session._intake, "_kept", None)
            push(socket, jpeg(1))
            told = socket.receive_json()
        assert (told["reason"], told["rejected"]) == ("failed", {"failed": 1})
        push(socket, jpeg(2))
        assert socket.receive_json()["seen"] == 2
