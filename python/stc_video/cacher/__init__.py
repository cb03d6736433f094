# SPDX-License-Identifier: Apache-2.0
"""Reuse of a vision tower's work between frames."""

from stc_video.cacher.attach import attach_cacher
from stc_video.cacher.cacher import Cacher
from stc_video.cacher.graphs import GraphStats, GraphWarning
from stc_video.cacher.guard import Timings
from stc_video.cacher.motion.promise import PromiseWarning
from stc_video.cacher.stats import CacheStats, FrameRecord

__all__ = [
    "CacheStats",
    "Cacher",
    "FrameRecord",
    "GraphStats",
    "GraphWarning",
    "PromiseWarning",
    "Timings",
    "attach_cacher",
]
