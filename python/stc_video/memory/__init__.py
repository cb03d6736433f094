# SPDX-License-Identifier: Apache-2.0
"""Memories of a session, which hold the keys and values of the language model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stc_video.memory.config import MemoryConfig, PlainConfig, RekvConfig, WindowConfig

if TYPE_CHECKING:
    from torch import nn

    from stc_video.memory.base import (
        Context,
        Frame,
        Memory,
        MemoryChangedError,
        Reading,
        Retrieved,
        Snapshot,
        VideoPlace,
    )
    from stc_video.memory.plain import PlainMemory
    from stc_video.memory.recent import WindowMemory
    from stc_video.memory.rekv import RekvMemory

__all__ = [
    "Context",
    "Frame",
    "Memory",
    "MemoryChangedError",
    "MemoryConfig",
    "PlainConfig",
    "PlainMemory",
    "Reading",
    "RekvConfig",
    "RekvMemory",
    "Retrieved",
    "Snapshot",
    "VideoPlace",
    "WindowConfig",
    "WindowMemory",
    "command_memory",
    "make_memory",
    "memory_config",
    "memory_name",
]

#: imported when they are first used, so that reading the settings need not wait for torch
_HOMES = {"PlainMemory": "plain", "RekvMemory": "rekv", "WindowMemory": "recent"} | dict.fromkeys(
    (
        "Context",
        "Frame",
        "Memory",
        "MemoryChangedError",
        "Reading",
        "Retrieved",
        "Snapshot",
        "VideoPlace",
    ),
    "base",
)
_CONFIGS: dict[str, type[PlainConfig] | type[RekvConfig] | type[WindowConfig]] = {
    "plain": PlainConfig,
    "rekv": RekvConfig,
    "window": WindowConfig,
}


def memory_config(memory: str | MemoryConfig) -> MemoryConfig:
    """Return the settings of a memory given by name or as settings."""
    if isinstance(memory, (PlainConfig, RekvConfig, WindowConfig)):
        return memory
    if memory not in _CONFIGS:
        raise ValueError(
            f"memory: must be one of {', '.join(_CONFIGS)} or a configuration, got {memory!r}"
        )
    return _CONFIGS[memory]()


def memory_name(config: MemoryConfig) -> str:
    """Return the name that a memory with these settings goes by."""
    return next(name for name, kind in _CONFIGS.items() if isinstance(config, kind))


def command_memory(name: str, settings: RekvConfig, defaults: RekvConfig) -> MemoryConfig:
    """Return the memory that a command was given by name; ``settings`` are those of ``rekv``.

    Settings that were changed for a memory that has none of them are refused.
    """
    if name == "rekv":
        return settings
    memory = memory_config(name)
    if settings != defaults:
        raise ValueError(
            "what is retrieved, stored and held in main memory belongs to --memory rekv, not to "
            f"{name}"
        )
    return memory


def make_memory(language_model: nn.Module, config: MemoryConfig) -> Memory:
    """Make a memory for a language model (without its head)."""
    from stc_video.memory.plain import PlainMemory
    from stc_video.memory.recent import WindowMemory
    from stc_video.memory.rekv import RekvMemory

    if isinstance(config, PlainConfig):
        return PlainMemory(language_model, config)
    if isinstance(config, WindowConfig):
        return WindowMemory(language_model, config)
    return RekvMemory(language_model, config)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
