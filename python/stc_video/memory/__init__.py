# SPDX-License-Identifier: Apache-2.0
"""What a session remembers: the keys and values of the language model."""

from __future__ import annotations

from torch import nn

from stc_video.memory.base import Context, Frame, Memory, Retrieved, Snapshot, VideoPlace
from stc_video.memory.config import PlainConfig, RekvConfig
from stc_video.memory.plain import PlainMemory
from stc_video.memory.rekv import RekvMemory

__all__ = [
    "Context",
    "Frame",
    "Memory",
    "PlainConfig",
    "PlainMemory",
    "RekvConfig",
    "RekvMemory",
    "Retrieved",
    "Snapshot",
    "VideoPlace",
    "make_memory",
    "memory_config",
]

_CONFIGS: dict[str, type[PlainConfig] | type[RekvConfig]] = {
    "plain": PlainConfig,
    "rekv": RekvConfig,
}


def memory_config(memory: str | PlainConfig | RekvConfig) -> PlainConfig | RekvConfig:
    """Return the settings of a memory given by name or as settings."""
    if isinstance(memory, (PlainConfig, RekvConfig)):
        return memory
    if memory not in _CONFIGS:
        raise ValueError(
            f"memory: must be one of {', '.join(_CONFIGS)} or a configuration, got {memory!r}"
        )
    return _CONFIGS[memory]()


def make_memory(language_model: nn.Module, config: PlainConfig | RekvConfig) -> Memory:
    """Make a memory for a language model (without its head)."""
    if isinstance(config, PlainConfig):
        return PlainMemory(language_model, config)
    return RekvMemory(language_model, config)
