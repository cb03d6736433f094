# SPDX-License-Identifier: Apache-2.0
"""The routes that ask: OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stc_video.serve.answers import LiveAnswer
from stc_video.serve.errors import Refused
from stc_video.serve.schema import ChatRequest, Completion
from stc_video.serve.service import Service
from stc_video.session import Answer

__all__ = ["chat_routes"]

_DISCONNECT_SECONDS = 0.2
_KEEP_ALIVE_SECONDS = 1.0
_CLIENT_GONE = 499


def chat_routes(service: Service, model: str) -> APIRouter:
    """Return the routes, for all streams and for one.

    Parameters
    ----------
    service
        Streams, answers and limits.
    model
        Name of the model.
    """
    routes, hub, config = APIRouter(), service.hub, service.config

    async def complete(chat: ChatRequest, request: Request, name: str | None) -> Response:
        if chat.model not in (None, model):
            raise Refused(404, f"the model is {model!r}, got {chat.model!r}", "model_not_found")
        try:
            history, question = chat.conversation()
        except ValueError as error:
            raise Refused(400, str(error), "bad_messages") from error
        stream = hub.the_one() if name is None else hub.get(name)
        if stream.session.is_empty:
            raise Refused(409, f"no frame of {stream.name!r} has been seen yet", "no_frames")
        settings = chat.settings(config.max_new_tokens)
        live = service.desk.ask(stream, question, history, settings)
        completion = Completion(model)
        if chat.stream:
            usage = chat.stream_options.include_usage
            events = _events(live, completion, settings["max_new_tokens"], usage)
            return _AnswerResponse(live, events)
        answer = await _wait(live, request)
        if answer is None:
            return Response(status_code=_CLIENT_GONE)
        reason = _reason(answer, settings["max_new_tokens"])
        return JSONResponse(completion.whole(answer, reason, _facts(answer, live)))

    @routes.post("/v1/chat/completions")
    async def ask(chat: ChatRequest, request: Request) -> Response:
        return await complete(chat, request, chat.video_stream)

    @routes.post("/v1/streams/{name}/chat/completions")
    async def ask_one(name: str, chat: ChatRequest, request: Request) -> Response:
        return await complete(chat, request, name)

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": model, "object": "model", "created": 0, "owned_by": "stc-kernels"}
        return {"object": "list", "data": [entry | {"random_weights": hub.chat.random}]}

    return routes


class _AnswerResponse(StreamingResponse):
    """Server-sent events; however they end, the answer does too."""

    def __init__(self, live: LiveAnswer, events: AsyncIterator[str]) -> None:
        super().__init__(
            events, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.stop()


async def _events(
    live: LiveAnswer, completion: Completion, most: int, usage: bool
) -> AsyncIterator[str]:
    yield _event(completion.piece({"role": "assistant", "content": ""}))
    async for piece in live.pieces(_KEEP_ALIVE_SECONDS):
        # A comment shows whether the client is still there.
        yield _event(completion.piece({"content": piece})) if piece else ": waiting\n\n"
    try:
        answer = await live.answer()
    except Exception as error:
        message = {"message": _sentence(error), "type": "server_error", "code": "failed"}
        yield _event({"error": message})
        return
    if answer is not None:
        reason = _reason(answer, most)
        yield _event(completion.piece({}, finish_reason=reason, stc=_facts(answer, live)))
        if usage:
            yield _event(completion.usage(answer))
    yield "data: [DONE]\n\n"


async def _wait(live: LiveAnswer, request: Request) -> Answer | None:
    """Wait for an answer as long as its client does."""
    ending = asyncio.ensure_future(live.answer())
    while not (await asyncio.wait([ending], timeout=_DISCONNECT_SECONDS))[0]:
        if await request.is_disconnected():
            live.stop()
    try:
        return ending.result()
    except Exception as error:
        raise Refused(500, _sentence(error), "failed") from error


def _sentence(error: Exception) -> str:
    # What went wrong inside is for the log; what was wrong with the question is for the client.
    return str(error) if isinstance(error, ValueError) else "the model failed; see the log"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _reason(answer: Answer, most: int) -> str:
    return "length" if len(answer.ids) >= most else "stop"


def _facts(answer: Answer, live: LiveAnswer) -> dict[str, Any]:
    """What the answer was given from."""
    frames = None
    if answer.retrieved is not None:
        frames = [
            {"number": f.number, "time": f.time, "layers": f.layers} for f in answer.retrieved
        ]
    seconds = {**answer.seconds, "first_token": live.text.first_token}
    return {"frames_seen": answer.frame, "retrieved": frames, "seconds": seconds}
