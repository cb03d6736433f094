# SPDX-License-Identifier: Apache-2.0
"""Connections: how many there may be, and for how long without a whole request.

A connection is unfinished until a request has come whole and its sender may ask it, and again once
it was answered. Unfinished ones are cheap to end, so they make room for new ones; those at work are
counted, and further ones refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from stc_video.serve.config import ServeConfig
from stc_video.serve.errors import refusal

_STATE = "stc_connection"
_SMALL_MESSAGE, _MOST_FRAGMENTS = 4096, 1024
_LOG = logging.getLogger(__name__)


class Connections:
    """All connections of a service, by the address that they come from.

    Parameters
    ----------
    config
        Limits.
    on_refusal
        Called with the reason each time one is ended or refused.
    """

    def __init__(self, config: ServeConfig, on_refusal: Callable[[str], None]) -> None:
        self.request_seconds = config.request_seconds
        self._config, self._on_refusal = config, on_refusal
        self._unfinished: dict[Connection, None] = {}  # the oldest first
        self._at_work: Counter[str] = Counter()
        self._makes_room = False

    def wait(self, connection: Connection) -> None:
        """Count an unfinished one; if there are too many, the oldest make room.

        They do so once what they have sent was read: a burst of connections is accepted all at
        once, and a whole request among them must not be ended by those that came behind it.
        """
        self._unfinished[connection] = None
        if len(self._unfinished) > self._config.max_unfinished and not self._makes_room:
            self._makes_room = True
            # A timer runs after the events that are there when it is due, `call_soon` before them.
            connection.loop.call_later(0, self._make_room)

    def _make_room(self) -> None:
        """End the oldest unfinished ones of whoever has most of them."""
        self._makes_room = False
        while len(self._unfinished) > self._config.max_unfinished:
            [(peer, _)] = Counter(c.peer for c in self._unfinished).most_common(1)
            of_peer = [c for c in self._unfinished if c.peer == peer]
            oldest = next((c for c in of_peer if not c.is_being_answered), of_peer[0])
            self.give_up(oldest, "503 Service Unavailable", "unfinished")

    def begin(self, connection: Connection) -> bool:
        """Count one as at work; False if there are too many."""
        peer, config = connection.peer, self._config
        if (
            self._at_work.total() >= config.max_connections
            or self._at_work[peer] >= config.max_peer_connections
        ):
            self._on_refusal("connections")
            return False
        self._unfinished.pop(connection, None)
        self._at_work[peer] += 1
        return True

    def rest(self, connection: Connection) -> None:
        """Its request is answered."""
        self._at_work[connection.peer] -= 1
        self._at_work += Counter()  # leaves out zeros

    def gone(self, connection: Connection) -> None:
        """It was closed."""
        self._unfinished.pop(connection, None)

    def give_up(self, connection: Connection, status: str, reason: str) -> None:
        """End an unfinished one."""
        self._unfinished.pop(connection, None)
        self._on_refusal(reason)
        connection.end(status)

    def close(self) -> None:
        """End all unfinished ones."""
        for connection in list(self._unfinished):
            connection.end("503 Service Unavailable")


class Connection(H11Protocol):
    """A connection with a time limit for requests."""

    def __init__(
        self, all_of_them: Connections, config: Any, server_state: Any, app_state: Any, _loop: Any
    ) -> None:
        super().__init__(config, server_state, {**app_state, _STATE: self}, _loop)
        self.socket: Socket | None = None
        self.peer = ""
        self._all = all_of_them
        self._is_at_work = False
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def is_being_answered(self) -> bool:
        """Whether a request is whole and its answer is not, as of pages and health."""
        cycle = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self._wait()
        self._all.wait(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self.lost()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def begin(self) -> bool:
        """Its request is whole, and may be asked; False if too many are at work."""
        self._is_at_work = self._all.begin(self)
        if self._is_at_work:
            self._stop_waiting()
        return self._is_at_work

    def rest(self) -> None:
        """The request has ended."""
        if self._is_at_work:
            self._is_at_work = False
            self._all.rest(self)
            if not self.transport.is_closing():
                self._wait()
                self._all.wait(self)

    def lost(self) -> None:
        """The connection is closed."""
        self._stop_waiting()
        self._all.gone(self)

    def end(self, status: str) -> None:
        """Say why, if nothing else was said yet, and close."""
        if not self.transport.is_closing():
            if self.cycle is None or not self.cycle.response_started:
                head = f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                self.transport.write(head.encode())
            self.transport.close()

    def _wait(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(
            self._all.request_seconds, self._all.give_up, self, "408 Request Timeout", "timeout"
        )

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class Socket(WebSocketsSansIOProtocol):
    """A WebSocket that holds no more of a message than its client may send."""

    def __init__(self, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.most = _SMALL_MESSAGE
        self._fragments = 0
        self._connection: Connection = app_state[_STATE]
        self._connection.socket = self

    def data_received(self, data: bytes) -> None:
        """Read on; end it if a message becomes too long or has too many parts."""
        super().data_received(data)
        held = len(self.conn.reader.buffer) + (self.conn.current_size or 0)
        is_too_much = held > self.most or self._fragments > _MOST_FRAGMENTS
        if is_too_much and not self.transport.is_closing():
            self.conn.fail(1009, f"a message must have at most {self.most} bytes")
            self.handle_parser_exception()

    def handle_cont(self, event: Any) -> None:
        """Count the parts of a message, which may be empty."""
        self._fragments = 0 if event.fin else self._fragments + 1
        super().handle_cont(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        super().connection_lost(exc)
        self._connection.lost()


class Admission:
    """Lets whole requests in as long as there are not too many; one for each service.

    Parameters
    ----------
    app
        What is protected.
    is_open
        Whether a path is answered always.
    """

    def __init__(self, app: ASGIApp, is_open: Callable[[str], bool]) -> None:
        self._app, self._is_open = app, is_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        connection: Connection | None = scope.get("state", {}).get(_STATE)
        if connection is None or self._is_open(scope["path"]):
            await self._app(scope, receive, send)
        elif connection.begin():
            try:
                await self._app(scope, receive, send)
            finally:
                connection.rest()
        else:
            text = "there are too many connections; try again later"
            headers = {"Retry-After": "1", "Connection": "close"}
            await refusal(503, text, "too_many_connections", headers)(scope, receive, send)


def allow_messages(scope: Scope, most: int) -> None:
    """Let the client of a WebSocket send messages of so many bytes, where it may send any."""
    connection: Connection | None = scope.get("state", {}).get(_STATE)
    if connection is not None and connection.socket is not None:
        connection.socket.most = most


def protocols(connections: Connections) -> dict[str, Any]:
    """Settings for uvicorn that make it count connections."""

    def make(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> Connection:
        return Connection(connections, config, server_state, app_state, _loop)

    return {"http": make, "ws": Socket}
