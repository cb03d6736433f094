# SPDX-License-Identifier: Apache-2.0
"""Warm-up, and the guard against being slower than the dense tower."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, make_tower, siglip2, siglip2_arguments, walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import Timings

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("name", ["siglip", "dinov2-registers"])
@pytest.mark.parametrize("policy", POLICIES)
def test_warmup_measures_and_touches_no_stream(name, policy):
    tower = make_tower(name)
    pictures = walk(6)
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy, guard=False))
    expected = encode(tower, pictures)
    cacher.reset()
    got = encode(tower, pictures[:3])
    timings = cacher.warmup(frame(3), output_hidden_states=True)
    got += encode(tower, pictures[3:])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert timings.dense > 0
    assert cacher.stats().timings == timings
    prefix = 3 if name.endswith("registers") else 0
    rows = [1, 2, 4, 6, 8] if policy == "motion" else [(16 + prefix) // 4]
    assert list(timings.cached) == [n + prefix * (policy == "motion") for n in rows]
    assert set(cacher.stats().streams) == {"default"}
    assert cacher.stats().guarded == 0


def test_warmup_reserves_room_for_the_streams_of_its_batch(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(guard=False))
    cacher.warmup(torch.cat([frame(0)] * 4), output_hidden_states=True)
    reserved = cacher.stats().state_bytes
    assert reserved > 0
    for name in "abcd":
        with cacher.streams([name]):
            encode(siglip, walk(2))
        assert cacher.stats().state_bytes == reserved
    cacher.reset()
    assert cacher.stats().state_bytes == reserved
    cacher.warmup(torch.cat([frame(0)] * 4), output_hidden_states=True)
    assert cacher.stats().state_bytes == reserved
    cacher.detach()
    assert cacher.stats().state_bytes == 0


def test_warmup_beyond_the_limit_is_refused(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(max_streams=2))
    with pytest.raises(ValueError, match="at most 2 streams"):
        cacher.warmup(torch.cat([frame(0)] * 3))
    cacher.warmup(torch.cat([frame(0)] * 2))


def test_warmup_takes_what_the_tower_takes():
    tower = siglip2()
    cacher = stc_video.attach_cacher(tower)
    assert cacher.warmup(**siglip2_arguments(2, (3, 4))).cached


def test_frames_that_do_not_pay_are_dense(siglip):
    """Few tokens pay here, more do not."""
    pictures = walk(9)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(refresh=0.0))
    cacher.use_timings(Timings(dense=1.0, cached={1: 0.2, 2: 1.3, 8: 1.5}))
    one_pixel = pictures[0].clone()
    one_pixel[..., :14, :14] = 0.0
    encode(siglip, [pictures[0], one_pixel])
    assert cacher.last_frames[0].kind == "cached"
    got = last_hidden(siglip, pictures[1])
    record = cacher.last_frames[0]
    assert record.kind == "dense"
    assert "takes 1.50 of a dense one's time here" in record.reason
    with cacher.paused():
        torch.testing.assert_close(got, last_hidden(siglip, pictures[1]), atol=2e-5, rtol=0)
    assert cacher.stats().guarded == 1
    last_hidden(siglip, pictures[1])
    assert cacher.last_frames[0].kind == "unchanged", "which always pays"


@pytest.mark.parametrize("policy", POLICIES)
def test_where_nothing_pays_nothing_is_kept(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    encode(siglip, walk(2))
    cacher.use_timings(Timings(dense=1.0, cached={2: 1.1, 8: 1.2}))
    for picture in walk(4):
        got = last_hidden(siglip, torch.cat([picture] * 2))
        with cacher.paused():
            stock = last_hidden(siglip, torch.cat([picture] * 2))
        torch.testing.assert_close(got, stock, atol=2e-5, rtol=0)
        assert [record.kind for record in cacher.last_frames] == ["dense"] * 2
        assert "of a dense one's time" in cacher.last_frames[0].reason
    stats = cacher.stats()
    assert (stats.guarded, stats.state_bytes) == (8, 0)
    assert stats.streams["default"].guarded == 8
    cacher.use_timings(None)
    encode(siglip, walk(6)[:2])
    assert cacher.last_frames[0].kind == "cached"


def test_the_guard_can_be_switched_off(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(guard=False))
    cacher.use_timings(Timings(dense=1.0, cached={2: 9.0, 8: 9.0}))
    encode(siglip, walk(6)[:2])
    assert cacher.last_frames[0].kind == "cached"


def test_timings():
    timings = Timings(dense=2.0, cached={10: 0.5, 20: 3.0})
    assert [timings.ratio(n) for n in (1, 10, 11, 20, 21)] == [0.25, 0.25, 1.5, 1.5, 1.0]
    assert not timings.never_pays
    for dense, cached in ((0.0, {1: 1.0}), (1.0, {}), (1.0, {1: 0.0}), (float("nan"), {1: 1.0})):
        with pytest.raises(ValueError, match="times must be above 0"):
            Timings(dense, cached)
