# SPDX-License-Identifier: Apache-2.0
"""Streaming video models made cheap per frame: cached vision towers and pruned tokens.

Names are imported when they are first used, so that ``stc --help`` need not wait for torch, and
``stc doctor`` can say that torch is missing.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from stc_video.moved_modules import MovedModuleFinder

if TYPE_CHECKING:
    from stc_kernels import BackendUnavailableError
    from stc_kernels._version import __version__
    from stc_video.acceleration import Acceleration, accelerate
    from stc_video.cacher import (
        Cacher,
        CacheStats,
        FrameRecord,
        GraphWarning,
        PromiseWarning,
        attach_cacher,
    )
    from stc_video.calibration import Calibration
    from stc_video.config import CacheConfig
    from stc_video.errors import (
        AnswerStoppedError,
        AttachError,
        CalibrationWarning,
        DamagedSaveError,
        FolderInUseError,
        MemoryFullError,
        StreamWarning,
        UnsupportedModelError,
        UntestedReleaseWarning,
    )
    from stc_video.loading.placement import ModelError
    from stc_video.loading.video_llm import ChatModel, load_chat_model
    from stc_video.memory import PlainConfig, RekvConfig, WindowConfig
    from stc_video.pruners import (
        AttentionCapture,
        PrunedTokens,
        Pruner,
        TowerMerger,
        attach_tome,
        capture_attention,
        make_pruner,
    )
    from stc_video.session import Answer, PushedFrame, SessionStats, StreamingSession
    from stc_video.video import VideoError, VideoWarning

_HOMES = {
    "Acceleration": "stc_video.acceleration",
    "Answer": "stc_video.session",
    "AnswerStoppedError": "stc_video.errors",
    "AttachError": "stc_video.errors",
    "AttentionCapture": "stc_video.pruners",
    "BackendUnavailableError": "stc_kernels",
    "CacheConfig": "stc_video.config",
    "CacheStats": "stc_video.cacher",
    "Cacher": "stc_video.cacher",
    "Calibration": "stc_video.calibration",
    "CalibrationWarning": "stc_video.errors",
    "ChatModel": "stc_video.loading.video_llm",
    "DamagedSaveError": "stc_video.errors",
    "FolderInUseError": "stc_video.errors",
    "FrameRecord": "stc_video.cacher",
    "GraphWarning": "stc_video.cacher",
    "MemoryFullError": "stc_video.errors",
    "ModelError": "stc_video.loading.placement",
    "PlainConfig": "stc_video.memory",
    "PromiseWarning": "stc_video.cacher",
    "PrunedTokens": "stc_video.pruners",
    "Pruner": "stc_video.pruners",
    "PushedFrame": "stc_video.session",
    "RekvConfig": "stc_video.memory",
    "SessionStats": "stc_video.session",
    "StreamWarning": "stc_video.errors",
    "StreamingSession": "stc_video.session",
    "TowerMerger": "stc_video.pruners",
    "UnsupportedModelError": "stc_video.errors",
    "UntestedReleaseWarning": "stc_video.errors",
    "VideoError": "stc_video.video",
    "VideoWarning": "stc_video.video",
    "WindowConfig": "stc_video.memory",
    "__version__": "stc_kernels",
    "accelerate": "stc_video.acceleration",
    "attach_cacher": "stc_video.cacher",
    "attach_tome": "stc_video.pruners",
    "capture_attention": "stc_video.pruners",
    "load_chat_model": "stc_video.loading.video_llm",
    "make_pruner": "stc_video.pruners",
}

__all__ = [
    "Acceleration",
    "Answer",
    "AnswerStoppedError",
    "AttachError",
    "AttentionCapture",
    "BackendUnavailableError",
    "CacheConfig",
    "CacheStats",
    "Cacher",
    "Calibration",
    "CalibrationWarning",
    "ChatModel",
    "DamagedSaveError",
    "FolderInUseError",
    "FrameRecord",
    "GraphWarning",
    "MemoryFullError",
    "ModelError",
    "PlainConfig",
    "PromiseWarning",
    "PrunedTokens",
    "Pruner",
    "PushedFrame",
    "RekvConfig",
    "SessionStats",
    "StreamWarning",
    "StreamingSession",
    "TowerMerger",
    "UnsupportedModelError",
    "UntestedReleaseWarning",
    "VideoError",
    "VideoWarning",
    "WindowConfig",
    "__version__",
    "accelerate",
    "attach_cacher",
    "attach_tome",
    "capture_attention",
    "load_chat_model",
    "make_pruner",
]

sys.meta_path.append(MovedModuleFinder)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
