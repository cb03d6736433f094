# SPDX-License-Identifier: Apache-2.0
"""Run the service until it is told to end."""

from __future__ import annotations

import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from stc_video.loading.video_llm import ChatModel
from stc_video.serve.app import make_app
from stc_video.serve.config import ServeConfig
from stc_video.serve.connections import Connections, protocols
from stc_video.serve.logs import log_settings
from stc_video.serve.service import Service

# Connections that wait to be accepted; the loop accepts as many at once before it looks at any.
_BACKLOG = 512
# Open files besides connections: saves, stores, libraries.
_RESERVE = 256


def serve(chat: ChatModel, config: ServeConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; streams are saved then.

    Parameters
    ----------
    chat
        The model.
    config
        Where, and what may be.
    on_ready
        Called with the address when it can be reached.

    Raises
    ------
    OSError
        If the address is taken or none of this machine's.
    ValueError
        If a saved stream cannot be resumed, or the system allows too few open files.
    """
    _provide_descriptors(config)
    listener = _listen(config)
    service = Service(chat, config)
    connections = Connections(config, lambda why: service.metrics.refused.labels(why).inc())

    def end() -> None:
        connections.close()
        service.stop_answers()

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    server = _Server(
        uvicorn.Config(
            make_app(service),
            **protocols(connections),
            log_config=log_settings(),
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=16 << 10,
            timeout_graceful_shutdown=max(1, round(config.shutdown_seconds)),
            ws_max_size=config.max_message_bytes,
            # Pictures are compressed already, and a small message could unfold to a large one.
            ws_per_message_deflate=False,
            lifespan="on",
        ),
        on_ready=lambda: on_ready(f"http://{shown}:{port}"),
        on_end=end,
    )
    try:
        service.start()
        with _signals_end_only_the_server():
            server.run(sockets=[listener])
    finally:
        listener.close()
        service.close()


@contextmanager
def _signals_end_only_the_server() -> Iterator[None]:
    """Uvicorn raises the signal that ended it once more, for the handlers that were there before.

    Ours do nothing, so that what comes after the server is done in peace.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ending = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: None) for number in ending]
    try:
        yield
    finally:
        for number, handler in zip(ending, before, strict=True):
            signal.signal(number, handler)


def _provide_descriptors(config: ServeConfig) -> None:
    """Raise the limit of open files, if need be, such that connections cannot use them up."""
    needed = config.max_connections + config.max_unfinished + 2 * _BACKLOG + _RESERVE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise ValueError(
                f"serve: {config.max_connections} connections need {needed} open files, the system "
                f"allows {hard}; raise that (ulimit -Hn)"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(config: ServeConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise OSError(f"serve: cannot listen on {config.host}:{config.port} ({reason})") from error
    return listener


class _Server(uvicorn.Server):
    """A server that says when it has started, and when it is about to end."""

    def __init__(
        self, config: uvicorn.Config, on_ready: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so, and shut down; uvicorn waits for the requests under way."""
        self._on_end()
        await super().shutdown(sockets)
