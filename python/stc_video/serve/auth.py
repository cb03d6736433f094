# SPDX-License-Identifier: Apache-2.0
"""Who may use the service."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from stc_video.serve.config import is_loopback
from stc_video.serve.errors import refusal

#: The WebSocket subprotocol. Browsers can set no header of a WebSocket, so the token may come as
#: a second subprotocol, "bearer." and the token.
SUBPROTOCOL = "stc"
_BEARER = "bearer."
_OPEN_PATHS = ("/", "/healthz")
_OPEN_FOLDER = "/assets/"


class Guard:
    """Asks for the token; without one, keeps web pages of other origins out.

    A page from elsewhere that is open in a browser on this machine can reach loopback. What it
    sends carries its origin, or, with a rebound name, a foreign host.

    Parameters
    ----------
    app
        What is protected.
    token
        What must be presented, or None.
    on_refusal
        Called with the reason of each refusal.
    """

    def __init__(self, app: ASGIApp, token: str | None, on_refusal: Callable[[str], None]) -> None:
        self._app, self._token, self._on_refusal = app, token, on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._token is None:
            refused = None if _is_local(headers) else ("origin", 403)
        else:
            refused = None if is_public(scope["path"]) or self._knows(headers) else ("token", 401)
        if refused is None:
            await self._app(scope, receive, send)
            return
        reason, status = refused
        self._on_refusal(reason)
        if scope["type"] == "websocket":
            # Before it is accepted, this is answered with status 403.
            await send({"type": "websocket.close", "code": 1008})
            return
        message = (
            "the token is missing or wrong: send the header Authorization: Bearer TOKEN"
            if reason == "token"
            else "requests must come from this machine and from no other web page"
        )
        # A further try costs a connection.
        headers_back = {"Connection": "close"}
        if status == 401:
            headers_back["WWW-Authenticate"] = "Bearer"
        await refusal(status, message, reason, headers_back)(scope, receive, send)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        offered = [given.strip()] if scheme.lower() == "bearer" else []
        for protocol in headers.get("sec-websocket-protocol", "").split(","):
            if protocol.strip().startswith(_BEARER):
                offered.append(protocol.strip().removeprefix(_BEARER))
        assert self._token is not None
        return any(hmac.compare_digest(o.encode(), self._token.encode()) for o in offered)


def is_public(path: str) -> bool:
    """Whether everybody gets to see it: the page, and the sign of life."""
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)


def _is_local(headers: Headers) -> bool:
    host, origin = headers.get("host", ""), headers.get("origin")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return is_loopback(name) and (origin is None or urlsplit(origin).netloc == host)
    except ValueError:  # an address such as [
        return False
