# SPDX-License-Identifier: Apache-2.0
"""A log that nobody can flood."""

from __future__ import annotations

import logging
import time
from typing import Any

_BURST, _SECONDS = 5, 10.0
_MOST_LENGTH = 8192


class FewOfAKind(logging.Filter):
    """Lets a few records of each kind through, and one in ten seconds from then on.

    A kind is a line of the code. The next record that passes says how many were left out. Long
    messages are cut off.
    """

    def __init__(self) -> None:
        super().__init__()
        # Kind: records left for now, time of the last one, how many were left out.
        self._kinds: dict[tuple[str, int], tuple[float, float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Decide on one record."""
        kind, now = (record.pathname, record.lineno), time.monotonic()
        left, then, omitted = self._kinds.get(kind, (_BURST, now, 0))
        left = min(_BURST, left + (now - then) / _SECONDS)
        if left < 1:
            self._kinds[kind] = (left, now, omitted + 1)
            return False
        self._kinds[kind] = (left - 1, now, 0)
        more = f" ({omitted} more like this were left out)" if omitted else ""
        record.msg, record.args = record.getMessage()[:_MOST_LENGTH] + more, None
        return True


def log_settings() -> dict[str, Any]:
    """Settings of `logging.config` for everything that a service may log, to standard error."""
    logger = {"handlers": ["stderr"], "level": "WARNING", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"few": {"()": FewOfAKind}},
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "filters": ["few"],
                "formatter": "line",
            }
        },
        "loggers": {
            name: logger for name in ("uvicorn", "asyncio", "stc_video", "websockets", "concurrent")
        },
    }
