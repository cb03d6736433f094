# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a frame are encoded, and when all of them are.

A policy encodes frames of one stream and keeps that stream's state. It gets the residual stream
before the first block and returns the outputs of the blocks.
"""

from __future__ import annotations

from stc_video.cacher.policies.base import Outputs, Policy
from stc_video.cacher.policies.motion import MotionPolicy
from stc_video.cacher.policies.stc import StcPolicy
from stc_video.config import CacheConfig
from stc_video.towers.block import Tower

__all__ = ["MotionPolicy", "Outputs", "Policy", "StcPolicy", "make_policy"]


def make_policy(tower: Tower, config: CacheConfig) -> Policy:
    """Make the policy that the settings name."""
    return (MotionPolicy if config.policy == "motion" else StcPolicy)(tower, config)
