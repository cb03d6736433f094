# SPDX-License-Identifier: Apache-2.0
"""The service as an ASGI app."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from stc_kernels import __version__
from stc_video.loading.video_llm import ChatModel
from stc_video.serve.auth import Guard, is_public
from stc_video.serve.cameras import camera_routes
from stc_video.serve.chat import chat_routes
from stc_video.serve.connections import Admission
from stc_video.serve.errors import Refused, install_handlers
from stc_video.serve.hub import StreamHub
from stc_video.serve.limits import BodyLimit
from stc_video.serve.metrics import Metrics
from stc_video.serve.service import Service

_ASSETS = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "overlay.js": "text/javascript",
}
# The page may load and reach nothing but this service.
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def make_app(service: Service, behind: Callable[[ASGIApp], ASGIApp] = lambda app: app) -> ASGIApp:
    """Make the app.

    Parameters
    ----------
    service
        A started one; it is closed when the app ends.
    behind
        Puts something in front of the routes, behind what protects them.

    Returns
    -------
    ASGIApp
        For uvicorn or another server.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(
        title="stc serve", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    install_handlers(app)
    metrics, model = service.metrics, _public_name(service.chat.name)
    app.include_router(chat_routes(service, model))
    app.include_router(camera_routes(service.hub, service.config))
    _add_streams(app, service.hub)
    _add_status(app, service.chat, metrics, model)
    limited = BodyLimit(Admission(behind(app), is_public), service.config.max_body_bytes)
    refused = metrics.refused
    return Guard(limited, service.config.token, lambda reason: refused.labels(reason).inc())


def _add_streams(app: FastAPI, hub: StreamHub) -> None:
    @app.get("/v1/streams")
    async def list_streams() -> dict[str, Any]:
        return {"object": "list", "data": hub.entries()}

    @app.delete("/v1/streams/{name}")
    async def remove_stream(name: str) -> dict[str, Any]:
        await run_in_threadpool(hub.remove, name)
        return {"id": name, "deleted": True}


def _add_status(app: FastAPI, chat: ChatModel, metrics: Metrics, model: str) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def scrape() -> Response:
        text = await run_in_threadpool(metrics.text)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    @app.get("/")
    async def page() -> Response:
        return _asset("page.html")

    @app.get("/assets/{name}")
    async def asset(name: str) -> Response:
        return _asset(name)

    @app.get("/v1/info")
    async def info() -> dict[str, Any]:
        return {"model": model, "notice": chat.notice, "version": __version__}


def _asset(name: str) -> Response:
    if name not in _ASSETS:
        raise Refused(404, "there is no such page", "not_found")
    text = (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
    return Response(text, media_type=_ASSETS[name], headers=_PAGE_HEADERS)


def _public_name(name: str) -> str:
    """Name of a model without the folders that it lies in."""
    return Path(name).name if Path(name).is_dir() else name
