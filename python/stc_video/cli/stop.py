# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C as a wish that long work can look at."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

INTERRUPTED = 130  # the exit code, as of a shell


class Stop:
    """Turns the first Ctrl-C into a wish to stop after the step under way.

    Raised in the middle of a frame it would meet code that takes it for an error of its own:
    transformers' image processors do. A second Ctrl-C is raised at once.

    Attributes
    ----------
    wanted : bool
        Whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.wanted = False
        self._before: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
