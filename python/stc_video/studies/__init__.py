# SPDX-License-Identifier: Apache-2.0
"""Comparisons of methods on real clips, and what they measure with."""

from stc_video.studies.pruning.clips import EncodedClip, encode_clip, open_clips
from stc_video.studies.pruning.study import PruneStudy, run_study

__all__ = ["EncodedClip", "PruneStudy", "encode_clip", "open_clips", "run_study"]
