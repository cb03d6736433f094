# SPDX-License-Identifier: Apache-2.0
"""Records, totals and settings."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import frame, last_hidden, make_tower, noisy_walk, walk, with_changed_patches

import stc_video
from stc_video import CacheConfig
from stc_video.towers.pre_norm import PreNormTower

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("policy", POLICIES)
def test_stats_add_up(policy):
    tower = make_tower("dinov2")
    cacher = stc_video.attach_cacher(tower, policy)
    records = []
    for picture in walk(9):
        last_hidden(tower, picture)
        records += cacher.last_frames
    stats = cacher.stats()
    assert stats.frames == stats.dense + stats.cached + stats.unchanged == 9
    assert stats.cost == pytest.approx(sum(record.cost for record in records) / 9)
    assert [record.index for record in records] == list(range(9))
    for record in records:
        assert record.encoded.shape == (17,)
        assert 0 <= float(record.encoded.min()) <= float(record.encoded.max()) <= 1 + 1e-6
        if record.kind == "cached":
            assert record.encoded[0] == pytest.approx(1.0), "the class token is always encoded"
            assert record.similarity.shape == (17,)


@pytest.mark.parametrize("policy", POLICIES)
def test_records_say_how_often_a_frame_went_through_the_layers_and_whether_it_is_finite(
    siglip, policy
):
    counted = []
    mlp = PreNormTower.of(siglip).blocks[2].mlp
    mlp.register_forward_hook(lambda *_: counted.append(1))
    settings = CacheConfig(policy, interval=9, redo_from=0.0, audits=False)
    cacher = stc_video.attach_cacher(siglip, settings)
    last_hidden(siglip, frame(9))  # the first call is also checked
    first, *others = noisy_walk(6)
    bad = first.clone()
    bad[0, 0, 0, 0] = torch.nan
    seen = set()
    for picture in (first, *others, others[-1], bad):
        counted.clear()
        last_hidden(siglip, picture)
        [record] = cacher.last_frames
        assert record.passes == len(counted)
        assert record.finite == (picture is not bad)
        assert (record.passes == 2) == (record.cost > 1.0)
        seen.add(record.passes)
    assert seen == ({0, 1, 2} if policy == "motion" else {1})
    assert cacher.stats().nonfinite == 1


def test_changed_patches_are_the_ones_encoded(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(refresh=0.0, buckets=(1 / 8, 1 / 2)))
    last_hidden(siglip, frame(0))
    last_hidden(siglip, with_changed_patches(frame(0), [3, 9]))
    record = cacher.last_frames[0]
    assert record.changed == 2
    assert record.encoded.nonzero().flatten().tolist() == [3, 9]
    assert record.cost == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "fast"}, "policy must be one of motion, stc, got 'fast'"),
        ({"ratio": 0.0}, "ratio must be above 0 and at most 1, got 0.0"),
        ({"ratio": 1.5}, "ratio must be above 0"),
        ({"interval": 0}, "interval must be a whole number from 1, got 0"),
        ({"interval": 1.5}, "interval must be a whole number"),
        ({"threshold": 2.0}, "threshold must be a cosine between -1 and 1"),
        ({"metric": "queries"}, "metric must be one of keys, values"),
        ({"refresh": -0.1}, "refresh must be between 0 and 1"),
        ({"buckets": ()}, "buckets must be ascending fractions"),
        ({"buckets": (0.5, 0.25)}, "buckets must be ascending fractions"),
        ({"tail_layers": -1}, "tail_layers must be a whole number from 0"),
        ({"max_streams": 0}, "max_streams must be a whole number from 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CacheConfig(**settings)
