# SPDX-License-Identifier: Apache-2.0
"""The one setting of the plugin, the environment variable ``STC_VLLM``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from stc_video.config import CacheConfig
from stc_video.pruners import make_pruner

VARIABLE = "STC_VLLM"
_OFF = ("", "0", "off")
_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Settings:
    """What ``STC_VLLM`` asks for: ``on``, or some of these as ``bytes=2GiB,quality=0.98``.

    Attributes
    ----------
    bytes
        How much the states of all streams of a worker may hold together.
    quality, threshold
        As in :class:`stc_video.CacheConfig`, policy ``motion``.
    items
        Whether the frames of a video without a name are a stream of their own, which ends with
        the video.
    prune
        Name of the pruner that takes the place of EVS where vLLM prunes videos by it; empty for
        EVS itself.
    """

    bytes: int = 2**30
    quality: float = CacheConfig.quality
    threshold: float | None = None
    items: bool = False
    prune: str = ""

    def __post_init__(self) -> None:
        """Check every value."""
        if self.bytes < 1:
            raise ValueError(f"{VARIABLE}: bytes must be at least 1, got {self.bytes}")
        self.config()
        if self.prune:
            make_pruner(self.prune, tokens_per_frame=1).tokens_kept(1)

    def config(self) -> CacheConfig:
        """Settings of the policy. A row that is not encoded stays what it is, bit for bit."""
        return CacheConfig(
            quality=self.quality,
            threshold=self.threshold,
            propagate=0.0,
            batching="ragged",
            guard=False,
            pack_weights=False,
        )

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Settings | None:
        """Read the variable; None if the plugin is off.

        Raises
        ------
        ValueError
            If a setting is unknown or out of range.
        """
        text = environment.get(VARIABLE, "").strip()
        if text in _OFF:
            return None
        if text in ("1", "on"):
            return cls()
        given: dict[str, Any] = {}
        for part in text.split(","):
            name, is_setting, value = part.strip().partition("=")
            if not is_setting or name not in _READERS:
                raise ValueError(
                    f"{VARIABLE}: must be on, off, or some of {', '.join(_READERS)} as "
                    f"name=value with commas between, got {text[:200]!r}"
                )
            try:
                given[name] = _READERS[name](value)
            except (ValueError, KeyError):
                raise ValueError(f"{VARIABLE}: {name} cannot be {value!r}") from None
        return cls(**given)


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]iB)?", text)
    if match is None:
        raise ValueError(text)
    return int(float(match[1]) * _UNITS[match[2] or ""])


_READERS: dict[str, Callable[[str], Any]] = {
    "bytes": _size,
    "quality": float,
    "threshold": float,
    "items": {"on": True, "off": False}.__getitem__,
    "prune": str,
}
assert list(_READERS) == [item.name for item in fields(Settings)]
