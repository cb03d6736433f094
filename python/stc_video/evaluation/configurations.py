# SPDX-License-Identifier: Apache-2.0
"""What is compared: how frames are encoded, pruned and remembered, and the controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stc_video.config import CacheConfig
from stc_video.memory import MemoryConfig, PlainConfig, RekvConfig, WindowConfig
from stc_video.pruners import Pruner, make_pruner

#: name of the control that others are compared with
DENSE = "dense"
#: name of the control that sees nothing
BLIND = "blind"
_POLICIES = ("none", "motion", "stc")
_MEMORIES = ("plain", "rekv", "window")
_OF_CACHE = ("quality", "calibration", "ratio", "interval")
_REKV = ("retrieve_tokens", "retrieval", "recent_frames", "window_tokens", "host_bytes", "eviction",
         "storage")  # fmt: skip
#: fields that `--compare` does not set
_FIXED = ("pruner_settings", "blind")


@dataclass(frozen=True)
class Configuration:
    """Settings of a session under the names of the command line's options.

    Attributes
    ----------
    name
        In tables.
    policy, quality, calibration, ratio, interval
        Of the cacher, the calibration as a file; ``policy="none"`` encodes every frame densely.
        None leaves a setting to its default.
    prune, tokens_per_frame, pruner_settings
        Of the pruner; without a number of tokens it decides by itself how many it keeps.
    memory, retrieve_tokens, retrieval, recent_frames, window_tokens, host_bytes, eviction, storage
        Of the memory ``rekv``: what it retrieves, as in the paper, and what it holds in which
        form.
    window_frames, spread, max_tokens
        Which frames ``window`` keeps, and how much ``plain`` holds.
    frame_share
        Part of the sampled frames that are pushed at all, evenly.
    blind
        Every picture is black.
    """

    name: str = ""
    policy: str = "motion"
    quality: float | None = None
    calibration: str | None = None
    ratio: float | None = None
    interval: int | None = None
    prune: str = "stc"
    tokens_per_frame: int | None = 64
    pruner_settings: Mapping[str, Any] = field(default_factory=dict)
    memory: str = "rekv"
    retrieve_tokens: int = RekvConfig.retrieve_tokens
    retrieval: str = "plain"
    recent_frames: int = 0
    window_tokens: int = RekvConfig.window_tokens
    host_bytes: int = RekvConfig.host_bytes
    eviction: str = RekvConfig.eviction
    storage: str = RekvConfig.storage
    window_frames: int = WindowConfig.frames
    spread: str = WindowConfig.spread
    max_tokens: int = PlainConfig.max_tokens
    frame_share: float = 1.0
    blind: bool = False

    def __post_init__(self) -> None:
        """Check every value before a model is loaded."""
        if self.policy not in _POLICIES:
            raise ValueError(f"policy must be one of {', '.join(_POLICIES)}, got {self.policy!r}")
        if self.memory not in _MEMORIES:
            raise ValueError(f"memory must be one of {', '.join(_MEMORIES)}, got {self.memory!r}")
        if not 0 < self.frame_share <= 1:
            raise ValueError(f"frame_share must be above 0 and at most 1, got {self.frame_share}")
        self.cache_config(), self.pruner(), self.memory_config()
        if not self.name:
            object.__setattr__(self, "name", self._own_name())

    def cache_config(self) -> CacheConfig | None:
        """Settings of the cacher; None for no cacher."""
        given = {name: getattr(self, name) for name in _OF_CACHE
                 if getattr(self, name) is not None}  # fmt: skip
        belongs = {"none": (), "motion": _OF_CACHE[:2], "stc": _OF_CACHE[2:]}[self.policy]
        if wrong := [name for name in given if name not in belongs]:
            raise ValueError(f"{wrong[0]} does not belong to policy {self.policy}")
        if self.policy == "none":
            return None
        config = CacheConfig(policy=self.policy, **given)
        config.aim()  # reads the file
        return config

    def pruner(self) -> Pruner:
        """A new pruner."""
        if self.prune == "none":
            return make_pruner("none")
        counted = {} if self.tokens_per_frame is None else {
            "tokens_per_frame": self.tokens_per_frame
        }  # fmt: skip
        return make_pruner(self.prune, **counted, **self.pruner_settings)

    def memory_config(self) -> MemoryConfig:
        """Settings of the memory."""
        if self.memory == "plain":
            return PlainConfig(self.max_tokens)
        if self.memory == "window":
            return WindowConfig(self.window_frames, self.spread)
        return RekvConfig(**{name: getattr(self, name) for name in _REKV})

    def _own_name(self) -> str:
        cache = [self.policy, *(f"{name[0]}{getattr(self, name):g}" for name in
                 ("quality", "ratio", "interval") if getattr(self, name) is not None)]  # fmt: skip
        kept = (
            self.prune
            if self.prune == "none"
            else f"{self.prune}-{self.tokens_per_frame or 'free'}"
        )
        size = {"plain": "", "rekv": f"-{self.retrieve_tokens}", "window": f"-{self.window_frames}"}
        if self.calibration is not None:
            cache.append(Path(self.calibration).stem)
        own = [f"{name.partition('_')[0]}-{getattr(self, name)}" for name in _REKV[1:]
               if getattr(self, name) != getattr(Configuration, name)]  # fmt: skip
        return " ".join(["-".join(cache), kept, self.memory + size[self.memory], *own])


def parse_configuration(text: str, base: Configuration) -> Configuration:
    """Read ``key=value,key=value``: what differs from the main configuration.

    Raises
    ------
    ValueError
        If a key or a value is wrong.
    """
    defaults = {item.name: getattr(Configuration(name="x"), item.name)
                for item in fields(Configuration)}  # fmt: skip
    kinds = {"quality": float, "calibration": str, "ratio": float, "interval": int}
    changed: dict[str, Any] = {"name": ""}
    for part in text.split(","):
        key, found, value = (piece.strip() for piece in part.partition("="))
        key = key.replace("-", "_")
        if not found or key not in defaults or key in _FIXED:
            raise ValueError(
                f"--compare must be key=value,... with keys of "
                f"{', '.join(name for name in defaults if name not in _FIXED)}; got {part!r}"
            )
        try:
            changed[key] = kinds.get(key, type(defaults[key]))(value)
        except ValueError:
            raise ValueError(f"--compare: {key} must be a number, got {value!r}") from None
    return replace(base, **changed)


def controls(base: Configuration, frame_tokens: int | None) -> list[Configuration]:
    """Return what a configuration must be seen beside.

    Parameters
    ----------
    base
        The configuration.
    frame_tokens
        Tokens of a frame before pruning; None where it differs between videos, and there is no
        control of uniform frames then. Where the pruner decides how many tokens it keeps, there
        are none at the same budget either.
    """
    plain = replace(base, name=DENSE, policy="none", prune="none", pruner_settings={},
                    quality=None, calibration=None, ratio=None, interval=None)  # fmt: skip
    random = replace(plain, name="random tokens", prune="random")
    made = [plain, replace(plain, name=BLIND, blind=True),
            replace(plain, name="last 4 frames", memory="window", window_frames=4)]  # fmt: skip
    if base.prune != "none" and base.tokens_per_frame is None:
        return made
    if frame_tokens is not None:
        made.append(_uniform(base, plain, frame_tokens))
    return made if base.prune == "none" else [*made, random]


def _uniform(base: Configuration, plain: Configuration, frame_tokens: int) -> Configuration:
    """Whole frames, evenly spread, of at most as many tokens as the configuration reads."""
    kept = frame_tokens
    if base.prune != "none" and base.tokens_per_frame is not None:
        kept = min(base.tokens_per_frame, frame_tokens)
    most = {"rekv": base.retrieve_tokens, "plain": base.max_tokens,
            "window": base.window_frames * kept}[base.memory]  # fmt: skip
    return replace(
        plain,
        name="uniform frames",
        memory="window",
        spread="uniform",
        window_frames=max(1, most // frame_tokens),
        frame_share=1.0 if base.memory == "window" else kept / frame_tokens,
    )


def described(configurations: Sequence[Configuration]) -> list[dict[str, Any]]:
    """Describe configurations for the record."""
    return [{item.name: getattr(one, item.name) for item in fields(one)} for one in configurations]
