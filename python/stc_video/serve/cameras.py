# SPDX-License-Identifier: Apache-2.0
"""The WebSockets: frames in, and what became of them out."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from stc_video.serve.auth import SUBPROTOCOL
from stc_video.serve.config import ServeConfig
from stc_video.serve.connections import allow_messages
from stc_video.serve.errors import Refused
from stc_video.serve.hub import StreamHub
from stc_video.serve.queue import QueuedFrame
from stc_video.serve.streams import LiveStream, SeenFrame

_LOG = logging.getLogger(__name__)
_TRY_AGAIN, _GOING_AWAY = 1013, 1001
_MOST_TEXT = 1024
_REPLIES, _PICTURES = 256, 2


def camera_routes(hub: StreamHub, config: ServeConfig) -> APIRouter:
    """Return the routes that push and watch."""
    routes = APIRouter()

    @routes.websocket("/v1/streams/{name}/frames")
    async def push(socket: WebSocket, name: str) -> None:
        try:
            stream = await run_in_threadpool(hub.get_or_make, name)
            if stream.pushing:
                raise Refused(409, f"another client pushes to {name!r}", "busy")
        except Refused as refused:
            await _refuse(socket, refused)
            return
        stream.pushing = True
        replies = Outbox(socket, _REPLIES)
        forget = stream.on_end(replies.end)
        allow_messages(socket.scope, config.max_message_bytes)
        try:
            await _accept(socket)
            async with replies.sending():
                await _receive(socket, stream, replies)
        except WebSocketDisconnect:
            pass
        finally:
            forget()
            stream.pushing = False

    @routes.websocket("/v1/streams/{name}/watch")
    async def watch(socket: WebSocket, name: str) -> None:
        try:
            stream = hub.get(name)
            if stream.watchers >= config.max_watchers:
                text = f"{stream.watchers} clients watch {name!r} already, which is the limit"
                raise Refused(429, text, "too_many_watchers")
        except Refused as refused:
            await _refuse(socket, refused)
            return
        pictures = Outbox(socket, _PICTURES)
        # Before it is accepted, so that its client misses nothing from then on.
        stop, forget = stream.watch(pictures.put), stream.on_end(pictures.end)
        try:
            await _accept(socket)
            async with pictures.sending():
                await _until_gone(socket)
        except WebSocketDisconnect:
            pass
        finally:
            stop()
            forget()

    return routes


class Outbox:
    """Messages to a client; when it is too slow, the oldest make room.

    Parameters
    ----------
    socket
        The client.
    capacity
        How many may wait.
    """

    def __init__(self, socket: WebSocket, capacity: int) -> None:
        self._socket = socket
        self._waiting: deque[dict[str, Any] | SeenFrame] = deque(maxlen=capacity)
        self._loop = asyncio.get_running_loop()
        self._filled = asyncio.Event()
        self._ended: str | None = None

    def end(self, reason: str) -> None:
        """Close the connection once what waits was sent; can be called in any thread."""
        self._ended = reason
        self._wake()

    def put(self, message: dict[str, Any] | SeenFrame) -> None:
        """Append a message; can be called in any thread."""
        self._waiting.append(message)
        self._wake()

    def _wake(self) -> None:
        # The loop is gone when the service has ended meanwhile.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._filled.set)

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Inside the block messages are sent."""
        sender = asyncio.create_task(self._send())
        try:
            yield
        finally:
            sender.cancel()
            [error] = await asyncio.gather(sender, return_exceptions=True)
            # A client that is gone shows in what is received, too.
            expected = (asyncio.CancelledError, WebSocketDisconnect, RuntimeError)
            if error is not None and not isinstance(error, expected):
                _LOG.error("messages to a client ended", exc_info=error)

    async def _send(self) -> None:
        """Send facts as text, a picture as binary after its facts."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            while self._waiting:
                message = self._waiting.popleft()
                if isinstance(message, SeenFrame):
                    await self._socket.send_text(json.dumps(message.facts))
                    await self._socket.send_bytes(message.picture)
                else:
                    await self._socket.send_text(json.dumps(message))
            if self._ended is not None:
                told = {"event": "ended", "reason": self._ended}
                await self._socket.send_text(json.dumps(told))
                await self._socket.close(_GOING_AWAY, self._ended)
                return


async def _receive(socket: WebSocket, stream: LiveStream, replies: Outbox) -> None:
    """Take what the client sends: pictures, each after its time if it has one."""
    number, taken, last = 0, None, -math.inf
    while (message := await socket.receive())["type"] != "websocket.disconnect":
        data = message.get("bytes")
        if data is None:
            taken, problem = _time_of(message.get("text") or "")
            if problem:
                replies.put({"event": "error", "message": problem})
            elif taken is not None and taken < last:
                text = f"timestamps went back from {last:.3f} s to {taken:.3f} s; the order of the"
                replies.put({"event": "warning", "message": f"{text} pictures is what counts"})
            last = last if taken is None else taken
            continue
        when = time.time() if taken is None else taken
        frame = QueuedFrame(data, number, when, time.perf_counter(), replies.put)
        stream.put(frame)
        number, taken = number + 1, None


def _time_of(text: str) -> tuple[float | None, str | None]:
    """Read ``{"timestamp": seconds}``; returns the time, or what is wrong."""
    value = None
    if len(text) <= _MOST_TEXT:
        with suppress(ValueError, RecursionError):
            message = json.loads(text)
            if isinstance(message, dict) and set(message) == {"timestamp"}:
                value = message["timestamp"]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = None
    # A whole number may be larger than any float.
    if value is None or not abs(value) <= sys.float_info.max:
        text = 'a text message must be {"timestamp": seconds}, for the next picture, of at most'
        return None, f"{text} {_MOST_TEXT} characters"
    return float(value), None


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _accept(socket: WebSocket) -> None:
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)


async def _refuse(socket: WebSocket, refused: Refused) -> None:
    """Say why, where a browser can read it."""
    message = {"event": "refused", "code": refused.code, "message": str(refused.detail)}
    with suppress(WebSocketDisconnect):
        await _accept(socket)
        await socket.send_text(json.dumps(message))
        await socket.close(_TRY_AGAIN, refused.code)
