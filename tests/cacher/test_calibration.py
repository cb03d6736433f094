# SPDX-License-Identifier: Apache-2.0
"""From a quality to an aim, and files of calibrations."""

from __future__ import annotations

import json
import warnings

import pytest
from tiny_towers import encode, make_tower, noisy_walk

import stc_video
from stc_video import CacheConfig, Calibration, CalibrationWarning
from stc_video.cacher.attach import _warn_of_calibration
from stc_video.calibration import Aim, Measured, default_calibration

LOOSE = Measured(Aim(0.05, 0.1), similarity=0.97, worst_clip=0.95, cost=0.4)
TIGHT = Measured(Aim(0.005, 0.6), similarity=0.995, worst_clip=0.99, cost=0.7)
BOTH = Calibration((LOOSE, TIGHT), {"model": "a tower"})


@pytest.mark.parametrize(
    ("quality", "expected"), [(0.96, LOOSE), (0.97, LOOSE), (0.98, TIGHT), (0.999, TIGHT)]
)
def test_a_stream_starts_with_the_cheapest_aim_that_was_good_enough(quality, expected):
    assert BOTH.aim(quality) == expected.aim


def test_the_best_quality_is_the_worst_clip_of_the_best_aim():
    assert BOTH.best_quality == 0.99


def test_the_default_was_good_enough_on_its_clips():
    calibration = default_calibration()
    for quality in (CacheConfig().quality, 0.99):
        aim = calibration.aim(quality)
        point = next(point for point in calibration.points if point.aim == aim)
        assert point.similarity >= quality
    assert calibration.facts["model"]


def test_round_trip(tmp_path):
    BOTH.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == BOTH
    config = CacheConfig(calibration=tmp_path / "c.json", quality=0.95)
    assert config.aim() == LOOSE.aim


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "cannot be read"),
        ("{}", "is not one of `stc calibrate`"),
        ('{"version": 9, "points": [], "facts": {}}', "version must be 1, got 9"),
        ('{"version": 1, "points": [], "facts": {}}', "has no points"),
        ('{"version": 1, "points": [{"aim": 3}], "facts": {}}', "is not one of `stc calibrate`"),
    ],
)
def test_a_bad_file_leaves_the_tower_as_it_was(tmp_path, content, message):
    path = tmp_path / "c.json"
    path.write_text(content)
    tower = make_tower("siglip")
    with pytest.raises(ValueError, match=message):
        stc_video.attach_cacher(tower, CacheConfig(calibration=path))
    stc_video.attach_cacher(tower).detach()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"calibration .*nowhere\.json cannot be read"):
        CacheConfig(calibration=tmp_path / "nowhere.json").aim()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"quality": 1.0}, "quality must be a cosine between 0.5 and 0.999, got 1.0"),
        ({"propagate": 1.5}, "propagate must be between 0 and 1"),
        ({"redo_from": -1.0}, "redo_from must be between 0 and 2, or None"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        CacheConfig(**setting)


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_the_effort_follows_what_refreshed_tokens_show(name):
    """Up where they move by more than the aim, down where they move by less."""
    for error, ends_higher in ((1e-6, True), (0.9, False)):
        aim = Measured(Aim(error, 0.5), 0.0, 0.0, 0.0)
        tower = make_tower(name)
        settings = CacheConfig(calibration=Calibration((aim,)), redo_from=None, audits=False)
        cacher = stc_video.attach_cacher(tower, settings)
        encode(tower, noisy_walk(12))
        effort = cacher.stream_state("default").history.effort
        assert (effort.level > 0.5) is ends_higher


def test_streams_keep_efforts_of_their_own_and_save_them():
    """Which is all that differs between two streams of the same frames but another history."""
    tower = make_tower("dinov2")
    cacher = stc_video.attach_cacher(tower)
    pictures = noisy_walk(8)
    with cacher.streams(["a"]):
        encode(tower, pictures)
    with cacher.streams(["b"]):
        encode(tower, pictures[:1])
    a, b = cacher.stream_state("a"), cacher.stream_state("b")
    assert a.history.effort.error is not None
    assert b.history.effort.error is None
    json.dumps(vars(a.history.effort))
    cacher.reset("a")
    assert cacher.stream_state("a") is None or cacher.stream_state("a").history is None


@pytest.fixture
def untold():
    """Nothing was said yet in this process."""
    _warn_of_calibration.cache_clear()
    yield
    _warn_of_calibration.cache_clear()


@pytest.mark.parametrize(
    ("audits", "held"), [(True, "audits hold 0.99 from"), (False, "no audits hold the quality")]
)
def test_a_tower_without_one_of_its_own_says_so_once(untold, audits, held):
    tower, config = make_tower("siglip"), CacheConfig(quality=0.99, audits=audits)
    said = f"SiglipVisionModel has no calibration of its own: .*, and {held}"
    with pytest.warns(CalibrationWarning, match=said):
        cacher = stc_video.attach_cacher(tower, config)
    encode(tower, noisy_walk(12))
    assert (cacher.stats().audits > 0) == audits
    cacher.detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        stc_video.attach_cacher(tower, config).detach()


def test_a_tower_that_has_one_or_takes_none_says_nothing(untold):
    from transformers import Dinov2Config, Dinov2Model

    calibrated = Dinov2Model(Dinov2Config(hidden_size=384, num_attention_heads=6)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CalibrationWarning)
        stc_video.attach_cacher(calibrated).detach()
        for config in (CacheConfig(calibration=BOTH), CacheConfig(threshold=0.9)):
            stc_video.attach_cacher(make_tower("siglip"), config).detach()
        stc_video.attach_cacher(make_tower("siglip"), "stc").detach()
