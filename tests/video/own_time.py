# SPDX-License-Identifier: Apache-2.0
"""Time that passes only where somebody waits, so that a busy machine is never late."""

from __future__ import annotations

import threading

from stc_video.video.live import LiveVideo


class OwnTime(threading.Event):
    """A clock, and what ends a `LiveVideo`: its waits are over at once and move the clock on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0.0
        return self.is_set()


def in_own_time(source: object, fps: float) -> tuple[LiveVideo, OwnTime]:
    """A video on a clock of its own."""
    time = OwnTime()
    video = LiveVideo(str(source), fps, time, fast=False)
    video.clock = lambda: time.now
    return video, time
