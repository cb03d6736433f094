# SPDX-License-Identifier: Apache-2.0
"""What every command that writes a report does around its work."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["collected_warnings", "prepare_folder"]


def prepare_folder(out: Path) -> None:
    """Make the folder, so that a long run does not end without a place for its report."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"--out {out}: this is a file, not a folder") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ValueError(f"--out {out}: the folder cannot be written to")


@contextmanager
def collected_warnings() -> Iterator[list[str]]:
    """Collect this package's warnings for the report instead of printing them over the bar."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    for warning in caught:
        if warning.category.__module__.startswith("stc_") and str(warning.message) not in notes:
            notes.append(str(warning.message))
