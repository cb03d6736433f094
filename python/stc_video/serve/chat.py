# SPDX-License-Identifier: Apache-2.0
"""The routes that ask: OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from stc_video.serve.answers import LiveAnswer
from stc_video.serve.errors import Refused
from stc_video.serve.hub import StreamHub
from stc_video.serve.schema import ChatRequest, Completion
from stc_video.serve.service import Service
from stc_video.serve.streams import LiveStream
from stc_video.session import Answer

_DISCONNECT_SECONDS = 0.2
_KEEP_ALIVE_SECONDS = 1.0
_CLIENT_GONE = 499
_MOST_TOKEN = 16  # characters of a token, at the very most on average


def chat_routes(service: Service, model: str) -> APIRouter:
    """Return the routes, for all streams and for one.

    Parameters
    ----------
    service
        Streams, answers and limits.
    model
        Name of the model.
    """
    routes = APIRouter(dependencies=[Depends(_no_query)])
    hub, config = service.hub, service.config

    async def complete(chat: ChatRequest, request: Request, name: str | None) -> Response:
        _check_model(chat.model, model)
        try:
            history, question = chat.conversation()
        except ValueError as error:
            raise Refused(400, str(error), "bad_messages", param="messages") from error
        stream = hub.the_one() if name is None else hub.get(name)
        if stream.session.is_empty:
            raise Refused(409, f"no frame of {stream.name!r} has been seen yet", "no_frames")
        await run_in_threadpool(_check_length, stream, question, history, config.max_prompt_tokens)
        settings = chat.settings(config.max_new_tokens)
        live = service.desk.ask(stream, question, history, settings, chat.stop)
        completion = Completion(model)
        if chat.stream:
            events = _events(live, completion, chat.wants_usage)
            return _AnswerResponse(live, events)
        answer = await _wait(live, request)
        if answer is None:
            return Response(status_code=_CLIENT_GONE)
        return JSONResponse(completion.whole(answer, _facts(answer, live)))

    @routes.post("/v1/chat/completions")
    async def ask(chat: ChatRequest, request: Request) -> Response:
        return await complete(chat, request, chat.video_stream)

    @routes.post("/v1/streams/{name}/chat/completions")
    async def ask_one(name: str, chat: ChatRequest, request: Request) -> Response:
        if chat.video_stream not in (None, name):
            text = f"video_stream: the address names {name!r}, got {chat.video_stream!r}"
            raise Refused(400, text, "invalid_request", param="video_stream")
        return await complete(chat, request, name)

    _add_models(routes, hub, model)
    return routes


def _add_models(routes: APIRouter, hub: StreamHub, model: str) -> None:
    """Clients look models up under their base address, which may be that of a stream."""
    entry = {"id": model, "object": "model", "created": 0, "owned_by": "stc-kernels"}
    entry |= {"random_weights": hub.chat.random}

    @routes.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @routes.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        _check_model(name, model)
        return entry

    @routes.get("/v1/streams/{stream}/models")
    async def models_of(stream: str) -> dict[str, Any]:
        hub.get(stream)
        return await models()

    @routes.get("/v1/streams/{stream}/models/{name:path}")
    async def one_model_of(stream: str, name: str) -> dict[str, Any]:
        hub.get(stream)
        return await one_model(name)


def _check_length(
    stream: LiveStream, question: str, history: Sequence[tuple[str, str]], most: int
) -> None:
    """Refuse a question that is too long, or cannot be asked, before anything is computed."""
    limit = f"messages: a question must have at most {most} tokens with its earlier turns"
    # Even to count the tokens takes time.
    characters = len(question) + sum(len(turn) + len(answer) for turn, answer in history)
    if characters > _MOST_TOKEN * most:
        raise _too_long(f"{limit}, got {characters} characters")
    try:
        tokens = stream.session.question_tokens(question, history=history)
    except ValueError as error:
        raise Refused(400, str(error), "bad_messages", param="messages") from error
    if tokens > most:
        raise _too_long(f"{limit}, got {tokens}")


def _too_long(message: str) -> Refused:
    return Refused(400, message, "context_length_exceeded", param="messages")


def _check_model(name: str | None, model: str) -> None:
    if name not in (None, model):
        raise Refused(
            404, f"the model is {model!r}, got {name!r}", "model_not_found", param="model"
        )


def _no_query(request: Request) -> None:
    if query := next(iter(request.query_params), None):
        raise Refused(
            400, f"{query}: the address takes no parameters; fields belong into the body",
            "unknown_parameter", param=query,
        )  # fmt: skip


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


async def _events(live: LiveAnswer, completion: Completion, usage: bool) -> AsyncIterator[str]:
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
        reason = answer.finish_reason
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


def _facts(answer: Answer, live: LiveAnswer) -> dict[str, Any]:
    """Frames and times behind an answer."""
    frames = None
    if answer.retrieved is not None:
        frames = [
            {"number": f.number, "time": f.time, "layers": f.layers} for f in answer.retrieved
        ]
    seconds = {**answer.seconds, "first_token": live.text.first_token}
    return {"frames_seen": answer.frame, "retrieved": frames, "seconds": seconds}
