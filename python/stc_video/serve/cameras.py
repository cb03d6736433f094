# SPDX-License-Identifier: Apache-2.0
"""The WebSockets: frames in, and what became of them out."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.concurrency import run_in_threadpool

from stc_video.serve.errors import Refused
from stc_video.serve.guard import SUBPROTOCOL
from stc_video.serve.hub import StreamHub
from stc_video.serve.queue import QueuedFrame
from stc_video.serve.streams import LiveStream, SeenFrame

__all__ = ["camera_routes"]

_TRY_AGAIN = 1013
_REPLIES, _PICTURES = 256, 2


def camera_routes(hub: StreamHub) -> APIRouter:
    """Return the routes that push and watch."""
    routes = APIRouter()

    @routes.websocket("/v1/streams/{name}/frames")
    async def push(socket: WebSocket, name: str) -> None:
        await _accept(socket)
        try:
            stream = await run_in_threadpool(hub.get_or_make, name)
            if stream.pushing:
                raise Refused(409, f"another client pushes to {name!r}", "busy")
        except Refused as refused:
            await _refuse(socket, refused)
            return
        stream.pushing = True
        replies = Outbox(socket, _REPLIES)
        try:
            async with replies.sending():
                await _receive(socket, stream, replies)
        except WebSocketDisconnect:
            pass
        finally:
            stream.pushing = False

    @routes.websocket("/v1/streams/{name}/watch")
    async def watch(socket: WebSocket, name: str) -> None:
        try:
            stream = hub.get(name)
        except Refused as refused:
            await _accept(socket)
            await _refuse(socket, refused)
            return
        pictures = Outbox(socket, _PICTURES)
        # Before it is accepted, so that its client misses nothing from then on.
        stop = stream.watch(pictures.put)
        try:
            await _accept(socket)
            async with pictures.sending():
                await _until_gone(socket)
        except WebSocketDisconnect:
            pass
        finally:
            stop()

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

    def put(self, message: dict[str, Any] | SeenFrame) -> None:
        """Append a message; can be called in any thread."""
        self._waiting.append(message)
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
            # A client that is gone shows in what is received, too.
            await asyncio.gather(sender, return_exceptions=True)

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
        # Reads the header of the picture, which takes no time worth a thread.
        stream.put(frame)
        number, taken = number + 1, None


def _time_of(text: str) -> tuple[float | None, str | None]:
    """Read ``{"timestamp": seconds}``; returns the time, or what is wrong."""
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    known = isinstance(message, dict) and set(message) == {"timestamp"}
    value = message["timestamp"] if known else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None, 'a text message must be {"timestamp": seconds}, for the next picture'
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
    await socket.send_text(json.dumps(message))
    await socket.close(_TRY_AGAIN, refused.code)
