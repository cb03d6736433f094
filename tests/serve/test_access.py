# SPDX-License-Identifier: Apache-2.0
"""Who gets in."""

from __future__ import annotations

import pytest
from pictures import question
from starlette.websockets import WebSocketDisconnect

from stc_video.serve.config import ServeConfig

TOKEN = "a-long-enough-token.1"
CHAT = "/v1/chat/completions"


def test_another_host_than_loopback_needs_a_token() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org"):
        with pytest.raises(ValueError, match="needs a token"):
            ServeConfig(host=host)
        assert TOKEN not in repr(ServeConfig(host=host, token=TOKEN))
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        ServeConfig(host=host)
    for token in ("short", "with spaces in it and long", "ä" * 20):
        with pytest.raises(ValueError, match="the token must be 16 to 256 letters"):
            ServeConfig(token=token)
    with pytest.raises(ValueError, match="max_streams must be above 0, got 0"):
        ServeConfig(max_streams=0)


@pytest.mark.parametrize("given", [None, "Bearer wrong-token-1234567", "Basic " + TOKEN, "Bearer"])
def test_a_wrong_token_gets_nothing(service, given) -> None:
    headers = {} if given is None else {"Authorization": given}
    with service(host="192.168.0.7", token=TOKEN) as (client, hub):
        for method, path in [
            ("POST", CHAT), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/streams"),
            ("DELETE", "/v1/streams/x"), ("GET", "/openapi.json"), ("GET", "/assets/../v1/info"),
        ]:  # fmt: skip
            response = client.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/v1/streams/x/frames", headers=headers),
        ):
            pass
        assert hub.streams() == []
        # The page and the sign of life say nothing about anybody.
        for path in ("/", "/assets/page.js", "/healthz"):
            assert client.get(path).status_code == 200
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert 'reason="token"' in client.get("/metrics", headers=right).text


def test_the_right_token_opens(service) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with service(host="192.168.0.7", token=TOKEN) as (client, hub):
        models = client.get("/v1/models", headers=headers).json()["data"]
        assert [(m["id"], m["random_weights"]) for m in models] == [("tiny-llava", False)]
        with client.websocket_connect("/v1/streams/a/frames", headers=headers):
            pass
        protocols = ["stc", f"bearer.{TOKEN}"]
        with client.websocket_connect("/v1/streams/b/frames", protocols) as socket:
            assert socket.accepted_subprotocol == "stc"  # the token is not sent back
        assert len(hub.streams()) == 2


def test_pages_of_other_origins_are_kept_out(service) -> None:
    with service() as (client, hub):
        for headers in [
            {"Origin": "https://evil.example"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Origin": "null"},
            {"Host": "evil.example"},  # a name that was rebound to loopback
        ]:
            response = client.post(CHAT, json=question(), headers=headers)
            assert response.status_code == 403
            with (
                pytest.raises(WebSocketDisconnect),
                client.websocket_connect("/v1/streams/x/frames", headers=headers),
            ):
                pass
        assert hub.streams() == []
        own = {"Origin": "http://127.0.0.1"}
        assert client.get("/v1/models", headers=own).status_code == 200


def test_the_page_may_load_only_itself(service) -> None:
    with service() as (client, _):
        page = client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        for part in ("page.css", "page.js", "overlay.js"):
            assert f"assets/{part}" in page.text
            assert client.get(f"/assets/{part}").status_code == 200
        for name in ("page.py", "..%2fapp.py", "nothing"):
            assert client.get(f"/assets/{name}").status_code == 404
        assert client.get("/docs").status_code == 404
