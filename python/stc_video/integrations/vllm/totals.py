# SPDX-License-Identifier: Apache-2.0
"""Counts of what the plugin did in a worker: in the log, and as metrics for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

#: seconds between two lines of the log
_EVERY = 60.0
_MEANINGS = {
    "dense": "Frames of named streams that were encoded whole",
    "cached": "Frames of named streams of which some rows were encoded",
    "unchanged": "Frames of named streams that were handed out as they were",
    "rows": "Rows (patches) of the frames of named streams",
    "rows_encoded": "Rows that passed through the tower's layers",
    "evicted": "Streams whose state made room for another's",
    "ended": "Streams that ended as their client said",
    "too_large": "Items whose state is beyond the budget by itself, encoded by the stock tower",
    "streams": "Streams that have a state",
    "state_bytes": "Bytes that the states of all streams hold",
}
_GAUGES = ("streams", "state_bytes")


@dataclass
class Totals:
    """Counts since the worker was started; ``streams`` and ``state_bytes`` as they are now.

    Attributes
    ----------
    dense, cached, unchanged
        Frames of named streams, by how they were encoded.
    rows, rows_encoded
        Rows of these frames, and how many of them passed through the layers.
    evicted, ended
        Streams that lost their state to make room, and that ended as their client said.
    too_large
        Items whose state is beyond the budget by itself.
    streams, state_bytes
        How many streams have a state, and its size in bytes.
    """

    dense: int = 0
    cached: int = 0
    unchanged: int = 0
    rows: int = 0
    rows_encoded: int = 0
    evicted: int = 0
    ended: int = 0
    too_large: int = 0
    streams: int = 0
    state_bytes: int = 0

    def __str__(self) -> str:
        share = self.rows_encoded / max(1, self.rows)
        return (
            f"{self.streams} streams hold {self.state_bytes / 2**20:.1f} MiB, {self.evicted} were "
            f"evicted; frames: {self.dense} dense, {self.cached} cached, {self.unchanged} "
            f"unchanged; {share:.0%} of the rows were encoded"
        )


class Reporter:
    """Writes totals to the log, once a minute at most, and to Prometheus where it is installed.

    Parameters
    ----------
    log
        Writes a line.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._logged_at = time.monotonic()
        self._before = Totals()
        self._metrics = _metrics()

    def report(self, totals: Totals) -> None:
        """Pass on what was counted since the last call."""
        before = asdict(self._before)
        for name, value in asdict(totals).items():
            if name in _GAUGES:
                self._metrics[name].set(value)
            else:
                self._metrics[name].inc(value - before[name])
        self._before = Totals(**asdict(totals))
        if time.monotonic() - self._logged_at >= _EVERY:
            self._logged_at = time.monotonic()
            self._log(str(totals))


def _metrics() -> dict[str, Any]:
    """Counters and gauges ``stc_tower_...`` of this process, made once."""
    if not _MADE:
        import prometheus_client

        for name, meaning in _MEANINGS.items():
            _MADE[name] = (
                prometheus_client.Gauge(f"stc_tower_{name}", meaning, multiprocess_mode="livesum")
                if name in _GAUGES
                else prometheus_client.Counter(f"stc_tower_{name}", meaning)
            )
    return _MADE


_MADE: dict[str, Any] = {}
