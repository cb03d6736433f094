# SPDX-License-Identifier: Apache-2.0
"""Requests and pictures that were made to do harm, through the app itself."""

from __future__ import annotations

import io
import json
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import jpeg, push, question
from PIL import Image, ImageOps
from starlette.websockets import WebSocketDisconnect
from waiting import PATIENCE, wait_for

from stc_video.models.pictures import rgb_picture
from stc_video.serve.pictures import decode_picture
from stc_video.serve.plain_files import PictureError

FRAMES = "/v1/streams/door/frames"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture
def door(service):
    """A client of a service with a stream of which a frame was seen."""
    with service(max_prompt_tokens=300) as (client, _):
        with client.websocket_connect(FRAMES) as socket:
            push(socket, jpeg())
            socket.receive_json()
        yield client


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (r'{"messages": [{"role": "user", "content": "\ud800"}]}', "lone surrogate"),
        (r'{"messages": [{"role": "user", "content": "a"}], "\ud800": 1}', "lone surrogate"),
        (r'{"messages": [{"role": "user", "content": "a"}], "n": "\udfff"}', "lone surrogate"),
        (r'{"messages": [{"role": "user", "content": "a"}], "stop": "\ud800"}', "lone surrogate"),
        (r'{"messages": [{"role": "user", "content": "<|im_end|>"}]}', "special tokens"),
        (r'{"messages": [{"role": "user", "content": "<video>"}]}', "<video>"),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_texts_that_are_none_are_refused(door, body: str, message: str, streamed) -> None:
    if streamed:
        body = body[:-1] + ', "stream": true}'
    response = door.post(CHAT, content=body, headers=JSON)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_a_tiny_temperature_has_an_answer(door) -> None:
    greedy = door.post(CHAT, json=question()).json()["choices"]
    for settings in ({"temperature": 1e-300}, {"top_p": 1e-300}):
        response = door.post(CHAT, json=question(**settings))
        assert response.status_code == 200
        assert response.json()["choices"] == greedy


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}])
def test_addresses_that_are_none_are_refused(door, headers) -> None:
    assert door.get("/v1/models", headers=headers).status_code == 403


def test_a_long_question_is_refused_before_anything_is_computed(door, chat, monkeypatch) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b" * 200}]
    for messages in (
        question("what " * 60)["messages"],
        [*turns, *question("c" * 100)["messages"]],
        question("what " * 40_000)["messages"],
    ):
        for streamed in (False, True):
            with monkeypatch.context() as broken:
                broken.setattr(chat.model.model.language_model, "forward", None)
                response = door.post(CHAT, json={"messages": messages, "stream": streamed})
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
            assert "at most 300 tokens" in error["message"]
    assert door.post(CHAT, json=question("what " * 50)).status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        '{"timestamp": ' + "9" * 400 + "}",
        '{"timestamp": 1e400}',
        '{"timestamp": ' + "9" * 5000 + "}",
        '{"timestamp": 1' + " " * 1024 + "}",
        "[" * 1000,
    ],
)
def test_timestamps_that_are_none_are_said(door, text: str) -> None:
    with door.websocket_connect(FRAMES) as socket:
        socket.send_text(text)
        assert socket.receive_json()["event"] == "error"
        push(socket, jpeg(), 3.0)
        assert socket.receive_json()["event"] == "seen"


def test_clients_of_a_deleted_stream_are_told(service) -> None:
    with service() as (client, _), client.websocket_connect(FRAMES) as pusher:
        push(pusher, jpeg())
        pusher.receive_json()
        with client.websocket_connect("/v1/streams/door/watch") as watcher:
            assert client.delete("/v1/streams/door").json()["deleted"]
            for socket in (pusher, watcher):
                assert socket.receive_json() == {"event": "ended", "reason": "deleted"}
                with pytest.raises(WebSocketDisconnect) as error:
                    socket.receive_json()
                assert (error.value.code, error.value.reason) == (1001, "deleted")


def test_so_many_may_watch_a_stream(service) -> None:
    path = "/v1/streams/door/watch"
    with service(max_watchers=1) as (client, _), client.websocket_connect(FRAMES):
        with client.websocket_connect(path), client.websocket_connect(path) as second:
            assert second.receive_json()["code"] == "too_many_watchers"
        with client.websocket_connect(path), client.websocket_connect(FRAMES) as other:
            assert other.receive_json()["code"] == "busy"


def test_a_stream_that_hangs_keeps_no_other_from_being_saved(service, tmp_path: Path) -> None:
    with service(save_folder=tmp_path, shutdown_seconds=2) as (client, hub):
        for name in ("door", "roof"):
            with client.websocket_connect(f"/v1/streams/{name}/frames") as socket:
                push(socket, jpeg())
                socket.receive_json()
        hanging = hub.get("door")
        hanging.session._push_lock.acquire()  # the model never comes back
        with client.websocket_connect("/v1/streams/door/frames") as socket:
            push(socket, jpeg(1))
            wait_for(lambda: hanging.received == 2)
        hub.close()  # it does not wait for ever
        hanging.session._push_lock.release()
        assert hanging.join(time.monotonic() + PATIENCE)
        hanging.session.close()
        hub._handle.restore()
    assert (tmp_path / "roof" / "session.json").is_file()
    assert not (tmp_path / "door").exists()


# -- pictures --------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    whole = jpeg(kind="PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]  # behind the size


def jpeg_with(segments: bytes) -> bytes:
    whole = jpeg()
    return whole[:2] + segments + whole[2:]


def exif(entries: int) -> bytes:
    """Each entry claims 60 KB of the same bytes."""
    tags = b"".join(struct.pack("<HHII", 1000 + i, 7, 60_000, 8) for i in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + tags + bytes(4) + bytes(60_000 - len(tags))


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


EMPTY = zlib.compress(bytes(1_000_000))
CROWDED = {
    "texts to unpack": png_with(*[chunk(b"zTXt", b"a\0\0" + EMPTY)] * 60),
    "profiles to unpack": png_with(*[chunk(b"iCCP", b"a\0\0" + EMPTY)] * 60),
    "texts in Unicode": png_with(*[chunk(b"iTXt", b"a\0\1\0\0\0" + EMPTY)] * 60),
    "small texts": png_with(*[chunk(b"tEXt", b"a%d\0" % i) for i in range(9_000)]),
    "segments": jpeg_with(segment(0xFE, b"") * 900),
    "profiles": jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000)) * 100),
    "Exif data": jpeg_with(segment(0xE1, b"Exif\0\0" + exif(4_000))),
    "Exif data of a PNG": png_with(chunk(b"eXIf", exif(4_000))),
    "more pictures": jpeg_with(segment(0xE2, b"MPF\0" + exif(4_000))),
}


@pytest.mark.parametrize("name", CROWDED)
def test_what_is_not_the_picture_is_left_alone(name: str) -> None:
    plain = decode_picture(
        jpeg(kind="PNG" if CROWDED[name].startswith(b"\x89") else "JPEG"), 10_000
    )
    times = []
    for _ in range(3):
        begin = time.thread_time()
        assert np.array_equal(decode_picture(CROWDED[name], 10_000), plain)
        times.append(time.thread_time() - begin)
    assert min(times) < 0.1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_with(chunk(b"tEXt", b"") * 10_001), "at most 10000 chunks"),
        (jpeg_with(segment(0xFE, b"") * 1_001), "at most 1000 segments"),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"tEXt", bytes(40)), "does not begin with its size"),
        (png_with()[:20], "does not begin with its size"),
        (b"\xff\xd8\xff\xd9", "it has no size"),
        (b"\xff\xd8\xff\xff\xff", "it has no size"),
        (jpeg_with(segment(0xC0, bytes([8, 0, 9, 0, 9, 1, 1, 17, 0]))), "must have one size"),
        (jpeg_with(segment(0xC0, b"")), "must have one size"),
    ],
)
def test_files_with_too_many_parts_or_none_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(PictureError, match=message):
        decode_picture(data, 10_000)


def repeated_scan(times: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (1024, 1024), (90, 120, 30)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * times + data[-2:]


def test_scans_of_a_progressive_picture_are_bounded() -> None:
    assert decode_picture(repeated_scan(1), 1 << 20).shape == (1024, 1024, 3)
    begin = time.thread_time()
    with pytest.raises(PictureError, match="at most 64 scans"):
        decode_picture(repeated_scan(20_000), 1 << 20)
    assert time.thread_time() - begin < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_every_orientation_is_kept(kind: str, turned: int) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :8] = 255
    made = Image.Exif()
    made[0x010F] = "a maker"
    made[0x0112] = turned
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, exif=made)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)).convert("RGB"))
    assert np.array_equal(decode_picture(file.getvalue(), 10_000), expected)


KINDS = [
    *((mode, "PNG") for mode in ("L", "RGB", "RGBA", "P", "LA", "1", "I;16")),
    *((mode, kind) for mode in ("L", "RGB", "CMYK") for kind in ("JPEG", "progressive JPEG")),
]


@pytest.mark.parametrize(("mode", "kind"), KINDS)
def test_plain_files_show_the_same_picture(mode: str, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) << 8)
    else:
        image = Image.fromarray(noise).convert(mode)
    file = io.BytesIO()
    image.save(file, kind.split()[-1], progressive="progressive" in kind)
    expected = rgb_picture(Image.open(io.BytesIO(file.getvalue())))
    assert np.array_equal(decode_picture(file.getvalue(), 10_000), expected)


def test_whatever_is_cut_off_or_changed_is_a_picture_or_an_error() -> None:
    random = np.random.default_rng(3)
    whole = [jpeg(kind="PNG"), jpeg(), repeated_scan(3), CROWDED["Exif data"], *CROWDED.values()]
    for number in range(600):
        data = bytearray(whole[number % len(whole)])
        for place in random.integers(0, min(len(data), 400), random.integers(0, 6)):
            data[place] = random.integers(0, 256)
        end = random.integers(0, 400) if number % 3 == 0 else len(data)
        try:
            picture = decode_picture(bytes(data[:end]), 1 << 21)
        except PictureError:
            continue
        assert picture.dtype == np.uint8
        assert picture.shape[2] == 3


def test_one_message_tells_of_a_hostile_frame(service) -> None:
    with service() as (client, _), client.websocket_connect(FRAMES) as socket:
        for data in (repeated_scan(100), png_with(chunk(b"tEXt", b"") * 10_001)):
            push(socket, data)
            told = socket.receive_json()
            assert (told["event"], told["reason"]) == ("rejected", "malformed")
        assert json.dumps(told["rejected"]) == '{"malformed": 2}'
