# SPDX-License-Identifier: Apache-2.0
"""Clients of a service in another process, which give a busy machine time."""

from __future__ import annotations

import functools
import http.client

import websockets.sync.client
from waiting import PATIENCE

#: opens a WebSocket; it is for the service to notice that a client is gone, not for the client
connect = functools.partial(
    websockets.sync.client.connect, open_timeout=PATIENCE, ping_interval=None
)


def connection_to(address: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(address, timeout=PATIENCE)


def get(address: str, path: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """Status and body of a page."""
    connection = connection_to(address)
    connection.request("GET", path, headers=headers or {})
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found
