# SPDX-License-Identifier: Apache-2.0
"""Streaming video models made cheap per frame: cached vision towers and pruned tokens."""

from stc_kernels import BackendUnavailableError, __version__
from stc_video.cacher import Cacher, CacheStats, FrameRecord, attach_cacher
from stc_video.config import CacheConfig
from stc_video.errors import AttachError, UnsupportedModelError
from stc_video.pruners import PrunedTokens, Pruner, make_pruner

__all__ = [
    "AttachError",
    "BackendUnavailableError",
    "CacheConfig",
    "CacheStats",
    "Cacher",
    "FrameRecord",
    "PrunedTokens",
    "Pruner",
    "UnsupportedModelError",
    "__version__",
    "attach_cacher",
    "make_pruner",
]
