# SPDX-License-Identifier: Apache-2.0
"""Tables of studies as CSV."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from stc_video.report.page import atomic


def write_csv(rows: Sequence[Mapping[str, object]], path: str | os.PathLike[str]) -> Path:
    """Write rows as CSV, whole or not at all: see :func:`atomic`; returns the path.

    There must be at least one row, and all must have the same columns. NaN and None become empty
    cells, and other floats get six digits.
    """
    with atomic(Path(path)) as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return Path(path)


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
