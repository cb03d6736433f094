# SPDX-License-Identifier: Apache-2.0
"""Limits of rates and of bodies."""

from __future__ import annotations

import threading
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stc_video.serve.errors import refusal


class TokenBucket:
    """Lets so many events a second through, and as many at once after a pause.

    Parameters
    ----------
    rate
        Events per second.
    burst
        Events at once.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, max(burst, 1.0)
        self._left = self._burst
        self._then = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Let an event through and return 0, or return the seconds until the next may pass."""
        with self._lock:
            now = time.monotonic()
            self._left = min(self._burst, self._left + (now - self._then) * self._rate)
            self._then = now
            if self._left >= 1.0:
                self._left -= 1.0
                return 0.0
            return (1.0 - self._left) / self._rate


class BodyLimit:
    """Refuses bodies that are too large, announced or not, before they are held in memory.

    Parameters
    ----------
    app
        What is protected.
    most
        Bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its body read up to the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, whole = b"", False
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        too_large = not announced.isdigit() or int(announced) > self._most
        while not too_large and not whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            whole = not message.get("more_body", False)
            too_large = len(body) > self._most
        if too_large:
            text = f"the body must have at most {self._most} bytes"
            await refusal(413, text, "body_too_large")(scope, receive, send)
            return
        first = True

        async def replay() -> Message:
            nonlocal first
            if first:
                first = False
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)
