# SPDX-License-Identifier: Apache-2.0
"""What a replica does for all: lists and metrics, and questions sent where they belong."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from prometheus_client import generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stc_video.serve.errors import refusal
from stc_video.serve.parts import Part, stream_in

#: asks every replica by the name of a method; None for one that did not answer
AskAll = Callable[[str], Awaitable[dict[int, Any]]]


class Together:
    """Stands in front of a replica's app.

    Parameters
    ----------
    app
        The app.
    part
        Which streams are here.
    ask_all
        Asks all replicas, this one, too.
    """

    def __init__(self, app: ASGIApp, part: Part, ask_all: AskAll) -> None:
        self._app, self._part, self._ask_all = app, part, ask_all

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for all replicas, pass a request on, or refuse one that is not for this one."""
        app = self._app
        name = stream_in(scope.get("path", ""))
        asked = (scope.get("method"), scope.get("path"))
        if name is not None and not self._part.has(name):
            app = _not_here(scope, name)
        elif asked == ("GET", "/metrics"):
            text = merge_metrics(await self._ask_all("metrics_text"))
            app = PlainTextResponse(text, media_type="text/plain; version=0.0.4")
        elif asked == ("GET", "/v1/streams"):
            found = await self._streams()
            app = found if callable(found) else JSONResponse({"object": "list", "data": found})
        elif asked == ("POST", "/v1/chat/completions"):
            receive, body = await _kept(receive)
            app = await self._place(body) or app
        await app(scope, receive, send)

    async def _streams(self) -> list[dict[str, Any]] | ASGIApp:
        """All streams, or the refusal if they cannot be known."""
        found = await self._ask_all("list_streams")
        if silent := [str(number) for number, listed in found.items() if listed is None]:
            text = f"replica {', '.join(silent)} does not answer; try again"
            return refusal(503, text, "replica_away", {"Retry-After": "1"})
        entries = [entry for listed in found.values() for entry in listed]
        return sorted(entries, key=lambda entry: str(entry["id"]))

    async def _place(self, body: bytes) -> ASGIApp | None:
        """Where a question is answered; None for here, also if it cannot be understood."""
        try:
            fields = json.loads(body)
            name = fields.get("video_stream")
        except (ValueError, AttributeError, RecursionError):
            return None
        if name is None:
            found = await self._streams()
            if callable(found):
                return found
            names = [entry["id"] for entry in found]
            if len(names) != 1:
                known = ", ".join(names) or "none"
                return refusal(
                    400, f"the question must name a stream (video_stream); there are: {known}",
                    "no_stream",
                )  # fmt: skip
            [name] = names
        if not isinstance(name, str) or self._part.has(name):
            return None
        return RedirectResponse(f"/v1/streams/{quote(name, safe='')}/chat/completions", 307)


def _not_here(scope: Scope, name: str) -> ASGIApp:
    if scope["type"] == "websocket":

        async def close(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.close", "code": 1013})

        return close
    return refusal(421, f"stream {name} belongs to another replica; try again", "not_here")


async def _kept(receive: Receive) -> tuple[Receive, bytes]:
    """Read a body; returns what gives it out once more."""
    messages: list[Message] = []
    while not messages or messages[-1].get("more_body"):
        messages.append(await receive())
    body = b"".join(message.get("body", b"") for message in messages)

    async def again() -> Message:
        return messages.pop(0) if messages else await receive()

    return again, body


def merge_metrics(texts: Mapping[int, str | None]) -> bytes:
    """Put metrics of all replicas together, each with its number as a label.

    Parameters
    ----------
    texts
        Number of a replica -> its metrics in Prometheus' text format; None if it did not answer.
    """
    up = GaugeMetricFamily("stc_replica_up", "Whether a replica answers.", labels=["replica"])
    families: dict[str, Metric] = {}
    for number, text in texts.items():
        up.add_metric([str(number)], float(text is not None))
        for family in text_string_to_metric_families(text or ""):
            into = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                labels = {**sample.labels, "replica": str(number)}
                into.add_sample(sample.name, labels, sample.value)
    registry: Any = SimpleNamespace(collect=lambda: [*families.values(), up])
    return generate_latest(registry)
