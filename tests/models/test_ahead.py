# SPDX-License-Identifier: Apache-2.0
"""Frames encoded before it is known what changed: the same results, with one wait less."""

from __future__ import annotations

import warnings

import pytest
import torch
from counted import Waits, count, pretended_gpu
from tiny_towers import encode, frame, last_hidden, make_tower, noisy_walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.motion.promise import PromiseWarning

SETTINGS = {
    "promise": {},
    "no audits": {"audits": False},
    "redone": {"audits": False, "redo_from": 0.06},
    "tail": {"audits": False, "tail_layers": 2, "tail_from": 0.25, "buckets": (0.25, 0.5, 0.75)},
    "threshold": {"audits": False, "threshold": 0.9, "redo_from": None},
}


def walk_with_accidents():
    """A camera that moves, with a frame that is repeated, one of NaN, and a cut."""
    pictures = noisy_walk(20)
    pictures[6] = pictures[5].clone()
    pictures[10] = torch.full_like(pictures[10], torch.nan)
    pictures[14] = frame(500)
    return pictures


def seen(monkeypatch, settings, *, ahead):
    """Outputs and records of the clip, and of how many frames rows were encoded ahead."""
    monkeypatch.setattr(MotionPolicy, "AHEAD_ON", frozenset({"cpu"} if ahead else ()))
    config = CacheConfig(batching="bucketed", guard=False, **settings)
    tower = make_tower("dinov2-registers")
    cacher = stc_video.attach_cacher(tower, config)
    outputs, records = [], []
    for picture in walk_with_accidents():
        outputs += encode(tower, [picture])
        records += [
            (one.kind, one.reason, one.changed, one.cost, one.passes) for one in cacher.last_frames
        ]
    return outputs, records, cacher.stats().graphs.replayed


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_it_makes_no_difference_to_the_results(monkeypatch, settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromiseWarning)
        outputs, records, passes = seen(monkeypatch, settings, ahead=False)
        got, got_records, got_passes = seen(monkeypatch, settings, ahead=True)
    assert got_records == records
    for mine, theirs in zip(got, outputs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
    # Some were encoded for another number of rows than they needed, and then once more.
    assert got_passes > passes or settings is SETTINGS["redone"]
    assert {kind for kind, *_ in records} >= {"cached", "dense"}


def test_streams_that_need_another_number_of_rows_are_encoded_again(monkeypatch):
    """One camera still, one moving, one cut off by NaN: each as if it were alone."""
    monkeypatch.setattr(MotionPolicy, "AHEAD_ON", frozenset({"cpu"}))
    clips = [noisy_walk(6), walk_with_accidents()[6:12], walk_with_accidents()[11:17]]
    config = CacheConfig(batching="bucketed", guard=False, audits=False)
    alone = []
    for clip in clips:
        tower = make_tower("siglip")
        stc_video.attach_cacher(tower, config)
        alone.append([last_hidden(tower, picture) for picture in clip])
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, config)
    for number, pictures in enumerate(zip(*clips, strict=True)):
        with cacher.streams(["still", "moving", "broken"]):
            together = last_hidden(tower, torch.cat(pictures))
        for row, clip in zip(together, alone, strict=True):
            torch.testing.assert_close(row[None], clip[number], rtol=0, atol=1e-5, equal_nan=True)


def waits_of(config: CacheConfig, pictures) -> list[tuple[str, int]]:
    """Kind of each frame of a tower that says it is on a GPU, and how often it waited."""
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, config)
    cacher._watch = None  # looks at weights through memory that a machine without a GPU lacks
    found = []
    with pretended_gpu("cpu"):
        for picture in pictures:
            with Waits() as waits:
                count(lambda: last_hidden(tower, picture))  # noqa: B023
            found.append((cacher.last_frames[0].kind, waits.count))
    return found


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_a_cached_frame_waits_for_the_device_once(policy):
    """`motion` twice where the last frame had another number of rows."""
    shared = {"graphs": False, "guard": False, "pack_weights": False}
    found = waits_of(CacheConfig(policy, audits=False, **shared), noisy_walk(16))
    cached = [waits for kind, waits in found if kind == "cached"]
    assert cached.count(1) >= len(cached) - 3
    assert max(cached) <= 2
    assert len(cached) >= 7
