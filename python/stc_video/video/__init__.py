# SPDX-License-Identifier: Apache-2.0
"""Read the frames of a video file, a camera or an address, sampled by time."""

from stc_video.video.ahead import ahead
from stc_video.video.camera_loop import CameraLoop
from stc_video.video.clips import default_clip
from stc_video.video.errors import VideoError, VideoWarning
from stc_video.video.source import VideoFrame, VideoSource, open_video
from stc_video.video.timeline import SourceStats

__all__ = [
    "CameraLoop",
    "SourceStats",
    "VideoError",
    "VideoFrame",
    "VideoSource",
    "VideoWarning",
    "ahead",
    "default_clip",
    "open_video",
]
