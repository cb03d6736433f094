# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a frame are encoded, and when all of them are.

A policy encodes frames of some streams and keeps their states. It gets the residual stream before
the first block and returns the outputs of the blocks.
"""

from __future__ import annotations

from stc_video.cacher.policies.base import Outputs, Policy
from stc_video.cacher.policies.motion import MotionPolicy
from stc_video.cacher.policies.stc import StcPolicy
from stc_video.cacher.stream_pool import StreamPool
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower

__all__ = ["MotionPolicy", "Outputs", "Policy", "StcPolicy", "make_policy"]


def make_policy(tower: Tower, config: CacheConfig, pool: StreamPool) -> Policy:
    """Make the policy that the settings name; states of streams go into the pool."""
    return (MotionPolicy if config.policy == "motion" else StcPolicy)(tower, config, pool)
