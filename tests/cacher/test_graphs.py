# SPDX-License-Identifier: Apache-2.0
"""Recorded passes. On a CPU a recording calls the pass again on its own buffers.

What a CUDA graph does beyond that is in test_gpu_cacher.py.
"""

from __future__ import annotations

import pytest
import torch
from tiny_towers import (
    encode,
    frame,
    last_hidden,
    make_tower,
    noisy_walk,
    siglip2,
    siglip2_arguments,
)

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import GraphWarning
from stc_video.cacher.graphs import GraphCache, PlainRecorder
from stc_video.towers import fused

BUCKETED = CacheConfig(batching="bucketed")


def reference(tower, pictures):
    """What the same stream gives in one ragged pass."""
    cacher = stc_video.attach_cacher(tower, CacheConfig(batching="ragged"))
    outputs = encode(tower, pictures)
    cacher.detach()
    return outputs


def assert_same(got, expected):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2-swiglu", "dinov2-registers"])
def test_passes_are_recorded_once_and_replayed(name):
    tower = make_tower(name)
    pictures = noisy_walk(12)
    expected = reference(tower, pictures)
    cacher = stc_video.attach_cacher(tower, BUCKETED)
    records = []
    for picture, output in zip(pictures, expected, strict=True):
        assert_same(encode(tower, [picture]), [output])
        records += cacher.last_frames
    graphs = cacher.stats().graphs
    # A dense one, and those of the buckets of 4, 6 and 8 patches that come up.
    assert 2 <= graphs.recorded == graphs.kept <= 4
    # One for each frame, and one more for a frame that is encoded densely after all.
    redone = sum(record.passes == 2 for record in records)
    assert graphs.replayed == 12 + redone
    assert graphs.nbytes > 0
    assert (graphs.evicted, graphs.failures) == (0, ())


def test_ten_frames_are_the_callers_to_keep(siglip):
    stc_video.attach_cacher(siglip, BUCKETED)
    kept = encode(siglip, noisy_walk(10))
    copies = [output.clone() for output in kept]
    encode(siglip, noisy_walk(10))
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    kept[-1].fill_(1e6)
    assert last_hidden(siglip, noisy_walk(10)[-1]).abs().max() < 1e3


def test_streams_are_filled_up_to_powers_of_two(siglip):
    """Three streams share the recordings of four, and five or seven those of eight."""
    pictures = noisy_walk(2)
    cacher = stc_video.attach_cacher(siglip, BUCKETED)
    names = [f"camera {number}" for number in range(8)]
    recorded = []
    for count in (8, 4, 3, 5, 7, 2):
        with cacher.streams(names[-count:]):
            last_hidden(siglip, torch.cat([pictures[0]] * count))
            got = last_hidden(siglip, torch.cat([frame(60 + count)] * count))
        assert {record.kind for record in cacher.last_frames} == {"dense"}
        for row in got[1:]:
            torch.testing.assert_close(row, got[0], atol=1e-5, rtol=0)
        recorded.append(cacher.stats().graphs.recorded)
    # The dense passes of 8, of 4 and of 2 streams.
    assert recorded == [1, 2, 2, 2, 2, 3]


def test_the_least_recently_used_go_when_the_limit_is_reached(siglip):
    pictures = noisy_walk(12)
    expected = reference(siglip, pictures)
    largest = 16 * 48 * 4 + 16 * 4 + 8  # rows, places, slot
    cacher = stc_video.attach_cacher(
        siglip, CacheConfig(batching="bucketed", graph_bytes=largest + 10)
    )
    for picture, want in zip(pictures, expected, strict=True):
        assert_same([last_hidden(siglip, picture)], [want])
        assert cacher.stats().graphs.nbytes <= largest + 10
    graphs = cacher.stats().graphs
    assert graphs.evicted > 0
    assert graphs.kept == graphs.recorded - graphs.evicted


def test_what_is_larger_than_the_limit_runs_without_and_says_so(siglip):
    pictures = noisy_walk(6)
    expected = reference(siglip, pictures)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(batching="bucketed", graph_bytes=0))
    with pytest.warns(GraphWarning, match="more than graph_bytes allows"):
        assert_same(encode(siglip, pictures), expected)
    graphs = cacher.stats().graphs
    assert (graphs.kept, graphs.recorded, graphs.replayed) == (0, 0, 0)
    assert "more than graph_bytes allows (0)" in graphs.failures[0]


def test_a_failed_recording_is_reported_and_the_pass_still_runs():
    class Refusing(PlainRecorder):
        def record(self, run, inputs):
            run(*inputs)  # a capture fails half way through
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    seen = []
    cache = GraphCache(Refusing(), limit=1 << 20)
    with pytest.warns(GraphWarning, match="not permitted when stream is capturing; it runs"):
        cache.run("owner", "key", seen.append, (torch.ones(2),))
    cache.run("owner", "key", seen.append, (torch.ones(2),))
    assert len(seen) == 3, "once in the failed recording, and once for each run"
    assert cache.stats.failures == (
        "recording a pass failed: operation not permitted when stream is capturing",
    )


def test_recordings_go_with_their_slab(siglip):
    cacher = stc_video.attach_cacher(siglip, BUCKETED)
    encode(siglip, noisy_walk(4))
    assert cacher.stats().graphs.kept > 0
    cacher.reset()
    assert (cacher.stats().graphs.kept, cacher.stats().graphs.nbytes) == (0, 0)


def test_other_weights_are_another_recording(siglip):
    cacher = stc_video.attach_cacher(siglip, BUCKETED)
    encode(siglip, noisy_walk(2)[:1])
    before = cacher.stats().graphs.recorded
    weights = {name: value * 0.9 for name, value in siglip.state_dict().items()}
    siglip.load_state_dict(weights, assign=True)
    got = encode(siglip, [frame(5)])
    assert cacher.stats().graphs.recorded == before + 1
    cacher.detach()
    assert_same(got, encode(siglip, [frame(5)]))


def test_masked_tokens_are_nobodys_keys():
    tower = siglip2()
    shown = [siglip2_arguments(2, (3, 4), seed=seed) for seed in range(4)]
    outputs = {}
    for batching in ("ragged", "bucketed"):
        settings = CacheConfig(batching=batching, buckets=(1.0,), audits=False)
        cacher = stc_video.attach_cacher(tower, settings)
        with torch.no_grad(), cacher.streams(["a", "b"]):
            outputs[batching] = [tower(**arguments).last_hidden_state for arguments in shown]
        assert cacher.last_frames[0].kind == "cached"
        cacher.detach()
    for a, b in zip(outputs["ragged"], outputs["bucketed"], strict=True):
        torch.testing.assert_close(a[:, :12], b[:, :12], atol=1e-5, rtol=0)


def test_warmup_records_what_the_stream_then_needs(siglip):
    pictures = noisy_walk(8)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(batching="bucketed", guard=False))
    cacher.warmup(torch.cat([frame(1)] * 2), output_hidden_states=True)
    recorded = cacher.stats().graphs.recorded
    assert recorded == 6, "the dense one and five buckets"
    with cacher.streams(["a", "b"]):
        for picture in pictures:
            last_hidden(siglip, torch.cat([picture] * 2))
    assert cacher.stats().graphs.recorded == recorded


def test_inference_mode_and_no_grad_may_take_turns(siglip):
    pictures = noisy_walk(8)
    expected = reference(siglip, pictures)
    stc_video.attach_cacher(siglip, BUCKETED)
    for number, (picture, want) in enumerate(zip(pictures, expected, strict=True)):
        with torch.inference_mode() if number % 2 == 0 else torch.no_grad():
            got = siglip(picture, output_hidden_states=True).hidden_states[-1]
            assert_same([got], [want])


@pytest.mark.parametrize("policy", ["motion", "stc"])
@pytest.mark.parametrize("name", ["siglip", "clip"])
def test_a_cached_tower_gives_the_same_with_fused_steps(monkeypatch, policy, name):
    """In recorded passes, as on a GPU."""
    settings = {"audits": False} if policy == "motion" else {}
    config = CacheConfig(policy, batching="bucketed", guard=False, pack_weights=False, **settings)
    outputs = []
    for devices in ({"cuda"}, {"cpu", "cuda"}):
        monkeypatch.setattr(fused, "_DEVICES", frozenset(devices))
        tower = make_tower(name)
        cacher = stc_video.attach_cacher(tower, config)
        outputs.append(encode(tower, noisy_walk(6)))
        assert cacher.stats().cached >= 3
    for plain, one in zip(*outputs, strict=True):
        torch.testing.assert_close(one, plain, rtol=0, atol=2e-4)
