# SPDX-License-Identifier: Apache-2.0
"""The files that docs/architecture.md lists for a cached frame are those that it enters."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from tiny_towers import make_tower, noisy_walk

import stc_video

PACKAGE = Path(stc_video.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def listed_files() -> list[str]:
    """Paths in the list, top down."""
    section = PAGE.read_text("utf-8").split("### A frame goes through these files")[1]
    return re.findall(r"^\d+\. `([\w/]+\.py)`", section.split("\n## ")[0], re.MULTILINE)


def entered_files(tower, picture) -> list[str]:
    """Files of the package whose functions a call of the tower enters, each once, in order."""
    entered: dict[str, None] = {}

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            entered.setdefault(path.relative_to(PACKAGE).as_posix())

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        tower(picture)
    finally:
        sys.setprofile(before)
    return list(entered)


def test_a_cached_frame_enters_the_files_of_the_list_in_that_order():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    first, *others = noisy_walk(4)
    with torch.no_grad():
        tower(first)
        entered = entered_files(tower, others[0])
    assert cacher.last_frames[0].kind == "cached"
    assert entered == listed_files()
