# SPDX-License-Identifier: Apache-2.0
"""Errors of reading a video."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be read, or not to its end; the message names source and frame.

    Parameters
    ----------
    message : str
        One sentence.
    frames_decoded : int
        How many frames of the source had been decoded when it happened; 0 if none.
    """

    def __init__(self, message: str, frames_decoded: int = 0) -> None:
        super().__init__(message)
        self.frames_decoded = frames_decoded


class VideoWarning(UserWarning):
    """A video's timestamps could not be taken as they are, or frames were damaged."""
