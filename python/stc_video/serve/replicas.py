# SPDX-License-Identifier: Apache-2.0
"""The service on Ray Serve: a replica on every GPU, and each stream on one replica.

Ray Serve starts replicas, starts dead ones again and carries requests to them. Here is only which
replica a stream belongs to.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
from starlette.types import ASGIApp

from stc_video.cluster import connect, room_for_models
from stc_video.loading.video_llm import load_chat_model
from stc_video.serve.app import make_app
from stc_video.serve.config import ServeConfig
from stc_video.serve.parts import part_of, stream_in, take_part
from stc_video.serve.service import Service
from stc_video.serve.together import Together

_APP = "stc"
#: seconds: to wait for a part, to wait for a replica's word, between looks at its health
_TAKE_SECONDS, _ANSWER_SECONDS, _HEALTH_SECONDS = 30.0, 5.0, 2.0
#: seconds for saving at the end, besides those for requests under way
_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class ModelChoice:
    """What a replica loads; without a number of threads it is torch's choice."""

    name: str
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = None


class PinnedRouter(RequestRouter):  # type: ignore[misc]  # has no types
    """Gives a request about a stream to the replica that the stream belongs to."""

    def initialize_state(self, count: int) -> None:
        """Learn how many replicas there are."""
        self._count = count

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Choose the one; while it is away the request waits."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        part = self._part(pending_request)
        if part is None:
            return [candidate_replicas]
        return [[one for one in candidate_replicas if one.replica_metadata.get("part") == part]]

    def _part(self, request: PendingRequest) -> int | None:
        [first, *_] = request.args
        if not request.metadata.is_http_request:
            return int(first)
        name = stream_in(pickle.loads(first).asgi_scope["path"])
        return None if name is None else part_of(name, self._count)


class Replica:
    """A service with a part of the streams."""

    def __init__(self, model: ModelChoice, config: ServeConfig, count: int) -> None:
        import torch

        if model.threads is not None:
            torch.set_num_threads(model.threads)
        assert config.save_folder is not None
        self._part, self._lock = take_part(config.save_folder, count, _TAKE_SECONDS)
        chat = load_chat_model(model.name, device=model.device, dtype=model.dtype)
        self._service = Service(chat, replace(config, part=self._part))
        self._service.start()
        self._handle: Any = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Make the app; its end saves and closes the service."""
        return make_app(self._service, lambda app: Together(app, self._part, self._ask_all))

    def record_replica_metadata(self) -> dict[str, int]:
        """Tell the router which part is here."""
        return {"part": self._part.number}

    def metrics_text(self, part: int) -> str:
        """Metrics of this replica."""
        return self._service.metrics.text().decode()

    def list_streams(self, part: int) -> list[dict[str, Any]]:
        """Streams of this replica."""
        return self._service.hub.entries()

    async def _ask_all(self, method: str) -> dict[int, Any]:
        if self._handle is None:  # there is none while the app is being started
            self._handle = serve.get_app_handle(_APP)
        handle = self._handle

        async def ask(part: int) -> Any:
            return await getattr(handle, method).remote(part)

        calls = (asyncio.wait_for(ask(part), _ANSWER_SECONDS) for part in range(self._part.count))
        found = await asyncio.gather(*calls, return_exceptions=True)
        return {part: None if isinstance(answer, BaseException) else answer
                for part, answer in enumerate(found)}  # fmt: skip


def start_replicas(
    model: ModelChoice,
    config: ServeConfig,
    address: str,
    count: int | None,
    on_ready: Callable[[str, int], None],
    *,
    proxies: str = "EveryNode",
) -> None:
    """Start the service on a Ray cluster, and return when it can be reached.

    Parameters
    ----------
    model
        What each replica loads.
    config
        Of each replica; ``save_folder`` must be there, and the same on all machines.
    address
        Of the cluster, as for `connect`.
    count
        How many replicas; None for as many as there are GPUs, or one without GPUs.
    on_ready
        Called with the address and the number of replicas.
    proxies
        Where Ray Serve listens: EveryNode or HeadOnly.

    Raises
    ------
    ValueError
        If there is no folder for saves, no such cluster, or no room.
    RuntimeError
        If the replicas do not start.
    """
    if config.save_folder is None:
        raise ValueError(
            "serve: --ray needs --save-folder, on storage that all machines see: from there a "
            "replica that died comes back"
        )
    ray = connect(address)
    needs, room = room_for_models(ray, model.device, model.threads)
    count = count or (room if "num_gpus" in needs else 1)
    if count > room:
        raise ValueError(f"--replicas {count}: the cluster has room for {room}")
    serve.start(proxy_location=proxies, http_options={"host": config.host, "port": config.port})
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="streams",
        num_replicas=count,
        ray_actor_options=needs,
        max_ongoing_requests=config.max_connections,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=config.shutdown_seconds + _SAVE_SECONDS,
        request_router_config=RequestRouterConfig(
            request_router_class=PinnedRouter, request_router_kwargs={"count": count}
        ),
    )
    if _APP in serve.status().applications:  # left by a command that was killed; it has the parts
        serve.delete(_APP)
    model = replace(model, threads=needs.get("num_cpus", model.threads))
    serve.run(deployment.bind(model, config, count), name=_APP, route_prefix="/")
    host = f"[{config.host}]" if ":" in config.host else config.host
    on_ready(f"http://{host}:{config.port}", count)


def stop_replicas() -> None:
    """Save all streams, and end the service; the cluster and its other apps go on."""
    serve.delete(_APP)
