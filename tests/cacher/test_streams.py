# SPDX-License-Identifier: Apache-2.0
"""Many streams in one tower."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, make_tower, walk

import stc_video
from stc_video import CacheConfig

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
@pytest.mark.parametrize("policy", POLICIES)
def test_interleaved_streams_get_what_each_gets_alone(name, policy):
    tower = make_tower(name)
    videos = {"a": walk(8), "b": [p.flip(-1) for p in walk(8)]}
    alone = {}
    for stream, pictures in videos.items():
        cacher = stc_video.attach_cacher(tower, policy)
        alone[stream] = encode(tower, pictures)
        cacher.detach()
    cacher = stc_video.attach_cacher(tower, policy)
    for number in range(8):
        # Together in one batch, then each by itself, in changing order.
        if number % 3 == 0:
            with cacher.streams(["b", "a"]):
                both = last_hidden(tower, torch.cat([videos["b"][number], videos["a"][number]]))
            got = {"b": both[:1], "a": both[1:]}
        else:
            got = {}
            for stream in ("a", "b") if number % 2 else ("b", "a"):
                with cacher.streams([stream]):
                    got[stream] = last_hidden(tower, videos[stream][number])
        for stream, output in got.items():
            torch.testing.assert_close(output, alone[stream][number], atol=1e-5, rtol=0)
    assert set(cacher.stats().streams) == {"a", "b"}
    assert cacher.stats().streams["a"].frames == 8


def test_a_batch_of_frames_is_the_same_as_one_at_a_time(siglip):
    pictures = walk(8)
    cacher = stc_video.attach_cacher(siglip)
    expected = encode(siglip, pictures)
    cacher.reset()
    batch = last_hidden(siglip, torch.cat(pictures))
    assert len(cacher.last_frames) == 8
    for number, output in enumerate(expected):
        assert torch.equal(batch[number], output[0])


def test_frames_depend_on_no_later_frame(siglip):
    pictures = walk(6)
    cacher = stc_video.attach_cacher(siglip)
    one = last_hidden(siglip, torch.cat(pictures))
    cacher.reset()
    other = last_hidden(siglip, torch.cat([*pictures[:4], frame(50), frame(51)]))
    assert torch.equal(one[:4], other[:4])
    assert not torch.equal(one[4], other[4])


@pytest.mark.parametrize("policy", POLICIES)
def test_reset_forgets_one_stream(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    for stream in ("a", "b"):
        with cacher.streams([stream]):
            encode(siglip, walk(2))
    before = cacher.stats().state_bytes
    cacher.reset("a")
    stats = cacher.stats()
    assert stats.streams["a"].state_bytes == 0
    assert stats.state_bytes == before // 2
    assert stats.streams["a"].resets == 1
    with cacher.streams(["a", "b"]):
        last_hidden(siglip, torch.cat([frame(0), frame(0)]))
    first, second = cacher.last_frames
    assert (first.kind, first.reason) == ("dense", "reset")
    assert second.reason != "reset"
    with pytest.raises(KeyError, match="no stream 'c'; known are: a, b"):
        cacher.reset("c")


def test_wrong_use_of_streams_is_refused(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(max_streams=2))
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(ValueError, match="different, non-empty names"), cacher.streams(names):
            pass
    with (
        cacher.streams(["a", "b"]),
        pytest.raises(ValueError, match=r"one row per stream \(2\), got 3"),
    ):
        siglip(torch.cat([frame(0)] * 3))
    with cacher.streams(["a", "b"]):
        siglip(torch.cat([frame(0)] * 2))
    with (
        cacher.streams(["c"]),
        pytest.raises(ValueError, match="at most 2 streams"),
    ):
        siglip(frame(0))
    cacher.reset("a")
    with cacher.streams(["c"]):
        siglip(frame(0))
