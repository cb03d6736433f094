# SPDX-License-Identifier: Apache-2.0
"""What was predicted of a GPU beside what was measured on it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

#: contender of `stc bench` -> frame of gpu_predicted.csv
CONTENDERS = {"dense-graph": "dense", "motion": "motion", "stc": "stc", "paper-graph": "paper"}


def compared(predicted: Path, measured: Path) -> Iterator[str]:
    """Lines of a table in Markdown, from gpu_predicted.csv and from what `stc bench` wrote."""
    with predicted.open(newline="") as file:
        expected = list(csv.DictReader(file))
    yield "| GPU | streams | frame | predicted ms | measured ms | measured / predicted |"
    yield "|---|---|---|---|---|---|"
    with measured.open(newline="") as file:
        for row in csv.DictReader(file):
            frame, device = CONTENDERS.get(row["contender"]), row["device"]
            for other in expected:
                case = (other["frame"], other["geometry"], other["streams"])
                is_case = case == (frame, row["geometry"], row["streams"])
                if is_case and other["gpu"] in device and row["median_ms"]:
                    ratio = float(row["median_ms"]) / float(other["ms"])
                    cells = (device, row["streams"], row["contender"], other["ms"])
                    yield f"| {' | '.join(cells)} | {row['median_ms']} | {ratio:.2f} |"
