# SPDX-License-Identifier: Apache-2.0
"""The cacher on a CUDA device: graphs, many streams, and how often it waits."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_towers import TOWERS, encode, frame, last_hidden, layers_of, make_tower, noisy_walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import GraphWarning, weight_watch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(pictures):
    return [picture.cuda() for picture in pictures]


def assert_same(got, expected, atol=2e-4):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), atol=atol, rtol=0)


@pytest.fixture(autouse=True)
def _exact_products():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("name", TOWERS)
def test_graphs_agree_with_no_graphs_and_with_the_cpu(name):
    pictures = noisy_walk(10)
    tower = make_tower(name)
    cacher = stc_video.attach_cacher(tower)
    expected = encode(tower, pictures)
    cacher.detach()
    tower.cuda()
    for config in (CacheConfig(), CacheConfig(graphs=False), CacheConfig(batching="ragged")):
        cacher = stc_video.attach_cacher(tower, config)
        assert_same(encode(tower, on_gpu(pictures)), expected)
        assert cacher.stats().cached > 0
        if config == CacheConfig():
            assert cacher.stats().graphs.replayed == 10
            assert cacher.stats().graphs.failures == ()
        cacher.detach()


@pytest.mark.parametrize("name", TOWERS)
def test_graphs_of_stc_agree_with_no_graphs_and_with_the_cpu(name):
    pictures = noisy_walk(10)
    tower = make_tower(name)
    cacher = stc_video.attach_cacher(tower, CacheConfig("stc", interval=3))
    expected = encode(tower, pictures)
    cacher.detach()
    tower.cuda()
    for settings in ({}, {"graphs": False}, {"batching": "ragged"}):
        cacher = stc_video.attach_cacher(tower, CacheConfig("stc", interval=3, **settings))
        kept = encode(tower, on_gpu(pictures))
        assert_same(kept, expected)  # and so none was overwritten by a later frame
        if not settings:
            assert cacher.stats().graphs.recorded == 2
            assert cacher.stats().graphs.replayed == 10
            assert cacher.stats().graphs.failures == ()
        cacher.detach()


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_graphs_follow_weights_that_change_in_place(policy):
    tower, pictures = make_tower("siglip").cuda(), on_gpu(noisy_walk(6))
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy))
    before = encode(tower, pictures)
    assert cacher.stats().packed_bytes == 4 * 3 * (48 * 48 + 48) * 4
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.9)
    cacher.reset()
    got = encode(tower, pictures)
    assert not torch.allclose(got[0], before[0], atol=1e-3)
    cacher.detach()
    stc_video.attach_cacher(tower, CacheConfig(policy, graphs=False, pack_weights=False))
    assert_same(got, encode(tower, pictures))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays_close_to_its_own_dense(dtype):
    tower = make_tower("siglip").cuda().to(dtype)
    pictures = [picture.to(dtype) for picture in on_gpu(noisy_walk(6))]
    cacher = stc_video.attach_cacher(tower, CacheConfig(buckets=(1.0,), tail_layers=0))
    got = encode(tower, pictures)
    with cacher.paused():
        expected = encode(tower, pictures)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=0.1, rtol=0.05)


def test_ten_frames_are_the_callers_to_keep():
    tower = make_tower("siglip").cuda()
    stc_video.attach_cacher(tower)
    pictures = on_gpu(noisy_walk(10))
    kept = encode(tower, pictures)
    copies = [output.clone() for output in kept]
    encode(tower, pictures)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))


def test_streams_together_get_what_each_gets_alone():
    tower = make_tower("siglip").cuda()
    videos = [on_gpu([picture.roll(shift, -1) for picture in noisy_walk(6)]) for shift in range(5)]
    cacher = stc_video.attach_cacher(tower)
    alone = []
    for video in videos:
        alone.append(encode(tower, video))
        cacher.reset()
    with cacher.streams([str(number) for number in range(5)]):
        for step in range(6):
            rows = last_hidden(tower, torch.cat([video[step] for video in videos]))
            assert_same(rows, [outputs[step][0] for outputs in alone])


def test_warmup_captures_everything_beforehand():
    tower = make_tower("siglip").cuda()
    cacher = stc_video.attach_cacher(tower, CacheConfig(guard=False))
    cacher.warmup(frame(0).cuda(), output_hidden_states=True)
    recorded = cacher.stats().graphs.recorded
    assert recorded == 6
    encode(tower, on_gpu(noisy_walk(8)))
    assert cacher.stats().graphs.recorded == recorded
    assert cacher.stats().graphs.nbytes > 0


def test_a_tower_that_cannot_be_captured_runs_and_says_why():
    tower = make_tower("siglip").cuda()
    pictures = on_gpu(noisy_walk(4))
    cacher = stc_video.attach_cacher(tower, CacheConfig(graphs=False))
    expected = encode(tower, pictures)
    cacher.detach()
    cacher = stc_video.attach_cacher(tower)
    mlp = cacher._tower.blocks[1].mlp
    hook = mlp.register_forward_pre_hook(lambda _m, args: float(args[0].sum()) and None)
    with pytest.warns(GraphWarning, match="recording a pass failed"):
        got = encode(tower, pictures)
    hook.remove()
    assert_same(got, expected)
    assert cacher.stats().graphs.failures


def test_a_frame_waits_for_the_device_twice_at_most_and_mostly_once():
    """For what changed; once more where the frame before encoded another number of tokens."""
    tower = make_tower("siglip").cuda()
    cacher = stc_video.attach_cacher(tower, CacheConfig(guard=False, audits=False))
    pictures = on_gpu(noisy_walk(6))
    encode(tower, pictures)
    waits = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        for picture in pictures:
            with warnings.catch_warnings(record=True) as caught, torch.no_grad():
                warnings.simplefilter("always")
                tower(picture, output_hidden_states=True)
            waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cacher.stats().cached > 0
    assert max(waits) <= 2
    assert waits.count(1) >= 3


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_values_written_behind_torchs_back_are_noticed_without_a_wait(policy):
    tower, picture = make_tower("siglip").cuda(), frame(0).cuda()
    cacher = stc_video.attach_cacher(tower, policy)
    for _ in range(3):
        last_hidden(tower, picture)
    watch = cacher._watch
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert all(watch.look() is None for _ in range(2 * weight_watch.INTERVAL))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for change in (lambda weight: weight.data.mul_(1.5), lambda weight: weight.data.neg_()):
        change(layers_of(tower)[2].mlp.fc1.weight)
        reasons = []
        for _ in range(weight_watch.INTERVAL + 1):
            got = last_hidden(tower, picture)
            torch.cuda.synchronize()
            reasons += [record.reason for record in cacher.last_frames]
        assert reasons.count("the tower changed: values of the weights changed") == 1
        with cacher.paused():
            assert_same([got], [last_hidden(tower, picture)])


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_graphs_do_not_outlive_any_weight_that_they_read(policy):
    tower, picture = make_tower("siglip").cuda(), frame(0).cuda()
    cacher = stc_video.attach_cacher(tower, policy)
    for number in range(3):
        last_hidden(tower, picture)
        linear = layers_of(tower)[number].mlp.fc2  # never the first parameter of a block
        linear.weight.data = linear.weight.data * 1.5
        got = last_hidden(tower, picture)
        assert cacher.last_frames[0].reason.startswith("the tower changed: the weights changed")
        with cacher.paused():
            assert_same([got], [last_hidden(tower, picture)])
