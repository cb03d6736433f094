# SPDX-License-Identifier: Apache-2.0
"""A live stream that can be asked."""

from __future__ import annotations

from stc_video.session.answer import Answer
from stc_video.session.pushed import PushedFrame
from stc_video.session.session import StreamingSession
from stc_video.session.stats import SessionStats, StageStats

__all__ = ["Answer", "PushedFrame", "SessionStats", "StageStats", "StreamingSession"]
