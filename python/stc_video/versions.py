# SPDX-License-Identifier: Apache-2.0
"""The releases of other packages that this one is meant for, and was tested with.

``python -m stc_video.versions`` lists what is installed beside what was tested, and fails unless
something is newer than that.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib import metadata

from stc_video.errors import UnsupportedModelError, UntestedReleaseWarning

#: oldest release with whose towers the cacher works
TOWERS_FROM = (4, 41)
#: oldest release with whose video language models `accelerate` and sessions work
VIDEO_MODELS_FROM = (4, 57)
#: first release that may differ in anything
BELOW = (6, 0)
#: newest (major, minor) of what the package leans on with which all tests have passed
NEWEST_TESTED = {
    "torch": (2, 14),
    "transformers": (5, 24),
    "triton": (3, 9),
    "av": (18, 1),
    "fastapi": (0, 165),
}


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
    if not oldest <= _numbers(found) < BELOW:
        raise UnsupportedModelError(
            f"{what}: transformers must be from {oldest[0]}.{oldest[1]} to below "
            f"{BELOW[0]}.{BELOW[1]}, found {found}"
        )


def untested() -> list[str]:
    """Name the installed packages that are newer than the newest tested release, in words."""
    return [
        f"{name} {found} (tested up to {tested[0]}.{tested[1]})"
        for name, tested in NEWEST_TESTED.items()
        if (found := _installed(name)) is not None and _numbers(found) > tested
    ]


@cache
def warn_if_untested() -> None:
    """Warn, once in a process, of packages that are newer than the newest tested release.

    Warns
    -----
    UntestedReleaseWarning
        Naming them.
    """
    if newer := untested():
        warnings.warn(
            f"stc-kernels was not tested with {', '.join(newer)}; results are checked when it is "
            "attached, and a release that was tested is the safe choice",
            UntestedReleaseWarning,
            stacklevel=3,
        )


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, int]:
    """(major, minor) of a version such as ``2.13.0+cpu``, ``5.0.0rc1`` or ``6``."""
    major, minor = re.match(r"(\d+)(?:\.(\d+))?", version).groups()  # type: ignore[union-attr]
    return int(major), int(minor or 0)


def _main() -> int:
    for name, tested in NEWEST_TESTED.items():
        print(
            f"{name}: {_installed(name) or 'not installed'}, tested up to {tested[0]}.{tested[1]}"
        )
    newer = untested()
    print(f"newer than tested: {', '.join(newer) or 'nothing'}")
    return 0 if newer else 1


if __name__ == "__main__":
    raise SystemExit(_main())
