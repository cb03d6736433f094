# SPDX-License-Identifier: Apache-2.0
"""The grid of a fidelity study: every setting once, under a name of its own."""

from __future__ import annotations

import pytest

from stc_video import CacheConfig, Calibration
from stc_video.calibration import Aim, Measured
from stc_video.studies.fidelity.settings import (
    INTERVALS,
    QUALITIES,
    RATIOS,
    THRESHOLDS,
    CacheSetting,
    calibration_notes,
    make_grid,
)


def test_the_default_grid_has_everything_once():
    grid = make_grid()
    assert len(grid) == len({s.name for s in grid}) == len(set(grid))
    assert len(grid) == 1 + len(INTERVALS) * len(RATIOS) + len(QUALITIES) + len(THRESHOLDS)
    names = {setting.name for setting in grid}
    assert {"dense", "stc, interval 2, ratio 1/4", "motion, quality 0.983"} <= names
    assert "motion, threshold 0.95" in names
    assert {s.family for s in grid if s.policy == "stc"} == {
        f"stc, interval {interval}" for interval in INTERVALS
    }


def test_a_setting_is_the_config_that_its_name_says():
    calibration = Calibration((Measured(Aim(0.1, 0.5), 0.0, 0.0, 0.0),))
    assert CacheSetting("dense").config(calibration) is None
    stc = CacheSetting("stc", interval=8, ratio=1 / 3)
    assert stc.config(calibration) == CacheConfig("stc", interval=8, ratio=1 / 3)
    assert stc.name == "stc, interval 8, ratio 1/3"
    motion = CacheSetting("motion", quality=0.95).config(calibration)
    assert motion == CacheConfig("motion", quality=0.95, calibration=calibration)
    fixed = CacheSetting("motion", threshold=0.9).config()
    assert fixed == CacheConfig("motion", threshold=0.9)
    assert CacheSetting("stc", interval=2, ratio=0.123).value == "0.123"


def test_what_cannot_be_set_is_refused():
    with pytest.raises(ValueError, match="policies must be among dense, stc, motion; got 'best'"):
        make_grid(["best"])
    with pytest.raises(ValueError, match="ratio must be above 0"):
        make_grid(["stc"], ratios=[0.0])
    with pytest.raises(ValueError, match="threshold must be a cosine"):
        make_grid(["motion"], thresholds=[2.0])


def test_notes_say_what_a_calibration_cannot_do():
    grid = make_grid(["motion"], qualities=[0.95, 0.96, 0.99, 0.995], thresholds=[0.9])
    [note] = calibration_notes(grid)
    assert note.startswith("quality 0.99 and 0.995: every clip of the calibration had 0.988")
    assert calibration_notes(make_grid(["stc", "dense"])) == []
