# SPDX-License-Identifier: Apache-2.0
"""Ray clusters: connecting to one, and what a process with a model needs there."""

from __future__ import annotations

import socket
from typing import Any

from stc_video.errors import install_hint

_CONNECT_SECONDS = 10.0


def require_ray() -> Any:
    """Return the module ``ray``, or raise ModuleNotFoundError with what to do."""
    try:
        import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        text = f"the package ray is missing: {install_hint('ray')}"
        raise ModuleNotFoundError(text) from error
    return ray


def connect(address: str) -> Any:
    """Connect to a Ray cluster.

    Parameters
    ----------
    address
        ``auto`` for the one that this machine belongs to, ``local`` for a new one on this machine,
        or ``HOST:PORT``.

    Returns
    -------
    module
        ``ray``.

    Raises
    ------
    ModuleNotFoundError
        If Ray is not installed.
    ValueError
        If there is no such cluster.
    """
    ray = require_ray()
    try:
        if address not in ("auto", "local"):
            _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"--ray {address}: there is no such cluster ({reason})") from error
    return ray


def _check_reachable(address: str) -> None:
    """Try an address; Ray would, without a word, for minutes."""
    host, found, port = address.rpartition(":")
    if not found or not port.isdigit():
        raise ValueError("it must be auto, local or HOST:PORT")
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


def room_for_models(ray: Any, device: str, threads: int | None) -> tuple[dict[str, int], int]:
    """Say what a process with a model needs, and how many of them a cluster has room for.

    Parameters
    ----------
    ray
        The module, connected.
    device
        ``cuda``: each has a GPU; ``cpu``: each has processors; ``auto``: a GPU if there is any.
    threads
        On processors, how many; None for one.

    Returns
    -------
    needs : dict
        As Ray takes it, ``{"num_gpus": 1}`` or ``{"num_cpus": threads}``.
    room : int
        At least 1.

    Raises
    ------
    ValueError
        If the device is another one, or there is no room.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            "--device must be auto, cpu or cuda with --ray, by which each model has a GPU of its "
            f"own, got {device!r}"
        )
    resources = ray.cluster_resources()
    on_gpu = device == "cuda" or (device == "auto" and "GPU" in resources)
    kind, each = ("GPU", 1) if on_gpu else ("CPU", threads or 1)
    room = int(resources.get(kind, 0)) // each
    if not room:
        raise ValueError(
            f"--ray: a model needs {each} {kind}, the cluster has {resources.get(kind, 0):g}"
        )
    return {f"num_{kind.lower()}s": each}, room
