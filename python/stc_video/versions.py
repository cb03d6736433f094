# SPDX-License-Identifier: Apache-2.0
"""The releases of transformers that are supported."""

from __future__ import annotations

from stc_video.errors import UnsupportedModelError

__all__ = ["TOWERS_FROM", "VIDEO_MODELS_FROM", "require_transformers"]

#: oldest release with whose towers the cacher works
TOWERS_FROM = (4, 41)
#: oldest release with whose video language models `accelerate` and sessions work
VIDEO_MODELS_FROM = (4, 57)
#: first release that may differ in anything
BELOW = (6, 0)


def require_transformers(oldest: tuple[int, int], what: str) -> None:
    """Refuse a release outside of the supported range.

    Parameters
    ----------
    oldest
        (major, minor) of the oldest release that will do.
    what
        What needs it, for the message.

    Raises
    ------
    UnsupportedModelError
        Naming the range and what was found.
    """
    import transformers

    found = transformers.__version__
    numbers = tuple(int(part) for part in found.split(".")[:2])
    if not oldest <= numbers < BELOW:
        raise UnsupportedModelError(
            f"{what}: transformers must be from {oldest[0]}.{oldest[1]} to below "
            f"{BELOW[0]}.{BELOW[1]}, found {found}"
        )
