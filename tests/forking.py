# SPDX-License-Identifier: Apache-2.0
"""Copies of the test's process, which may be killed."""

from __future__ import annotations

import gc
import os
import signal

from waiting import PATIENCE


def fork() -> int:
    """Fork, as `os.fork` does; what waits for a child that hangs sees it killed by a signal.

    The child frees nothing by itself: what belongs to threads of the parent, such as those that
    scale pictures, would wait for these threads, which it has not got.
    """
    child = os.fork()
    if not child:
        gc.disable()
        signal.alarm(int(PATIENCE))
    return child
