# SPDX-License-Identifier: Apache-2.0
"""Read the frames of a video file, sampled by time."""

from stc_video.video.clips import default_clip
from stc_video.video.source import VideoError, VideoFrame, VideoSource, open_video

__all__ = ["VideoError", "VideoFrame", "VideoSource", "default_clip", "open_video"]
