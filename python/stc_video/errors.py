# SPDX-License-Identifier: Apache-2.0
"""Errors that name what was found and what is supported."""


def install_hint(extra: str) -> str:
    """Return how to install what an extra of this package brings, as docs/install.md does it."""
    return f"pip install '.[{extra}]' in the checkout of stc-kernels"


class UnsupportedModelError(ValueError):
    """The object given is no supported model; it was left untouched."""


class AttachError(RuntimeError):
    """A cacher cannot be attached or detached; the model was left as it is."""


class MemoryFullError(RuntimeError):
    """A memory has reached its limit and may not forget anything; nothing was changed."""


class AnswerStoppedError(RuntimeError):
    """An answer was stopped before its first token."""


class UntestedReleaseWarning(UserWarning):
    """A package is newer than the newest release that stc-kernels was tested with."""


class CalibrationWarning(UserWarning):
    """A tower's streams start with a calibration that was measured with another tower."""


class StreamWarning(UserWarning):
    """A stream was taken as it came, but something about it is odd."""


class DamagedSaveError(ValueError):
    """A save is not what was written; nothing of it is used."""


class FolderInUseError(OSError):
    """A folder that only one may write to belongs to another process or session."""
