# SPDX-License-Identifier: Apache-2.0
"""Waiting for what happens in another thread or process, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

#: seconds in which whatever a test waits for has happened, on any machine
PATIENCE = 240.0

T = TypeVar("T")


def wait_for(found: Callable[[], T], said: Callable[[], object] = str) -> T:
    """Wait until something is true, and return it; what is said otherwise names the failure."""
    end = time.monotonic() + PATIENCE
    while not (value := found()):
        assert time.monotonic() < end, said()
        time.sleep(0.01)
    return value
