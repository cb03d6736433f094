# SPDX-License-Identifier: Apache-2.0
"""The `motion` policy against a straightforward version of itself, and its promises."""

from __future__ import annotations

import pytest
import torch
from stc_oracle import MotionOracle, blocks_of
from tiny_towers import (
    TOWERS,
    encoder_output,
    frame,
    layer_inputs,
    make_tower,
    noisy_walk,
    prefix_tokens,
    walk,
    with_changed_patches,
)

import stc_video
from stc_video import CacheConfig


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"quality": 0.999},
        {"redo_from": 0.025, "propagate": 0.3},
        {"threshold": 0.95, "tail_layers": 2, "tail_from": 0.25, "buckets": (0.25, 0.5, 0.75)},
        {"threshold": 0.5, "refresh": 0.25, "tail_layers": 0, "age_rate": 0.5, "redo_from": 0.3},
        {"batching": "bucketed"},
        {"batching": "bucketed", "tail_layers": 2, "tail_from": 0.25, "buckets": (0.25, 0.5, 0.75)},
    ],
    ids=["defaults", "tight", "redone", "wide-tail", "no-tail", "bucketed", "bucketed-wide-tail"],
)
def test_agrees_with_the_oracle(backend, name, settings):
    tower = make_tower(name)
    pictures = noisy_walk(9)
    inputs = layer_inputs(tower, pictures)
    oracle = MotionOracle(
        blocks_of(tower),
        prefix_tokens(name),
        **{
            {"tail_layers": "tail"}.get(key, key): value
            for key, value in settings.items()
            if key not in ("batching", "quality")
        },
        aim=CacheConfig(**settings).aim(),
    )
    cacher = stc_video.attach_cacher(tower, CacheConfig(**settings, audits=False))
    kinds = set()
    for picture, x in zip(pictures, inputs, strict=True):
        with torch.no_grad():
            expected = oracle.encode(x)
            hidden = tower(picture, output_hidden_states=True).hidden_states
        record = cacher.last_frames[0]
        kinds.add(record.kind)
        assert record.encoded.nonzero().flatten().tolist() == oracle.encoded
        # The last one may be behind a final norm, the ones before it are not.
        for got, layer in zip(hidden[1:-1], expected[:-1], strict=True):
            torch.testing.assert_close(got, layer, atol=1e-4, rtol=0)
    # With so low a limit some of the towers redo every frame.
    assert kinds == {"dense", "cached"} or settings.get("redo_from", 1.0) < 0.1


@pytest.mark.parametrize("name", TOWERS)
def test_output_agrees_with_the_oracle(name):
    tower = make_tower(name)
    pictures = noisy_walk(9)
    inputs = layer_inputs(tower, pictures)
    oracle = MotionOracle(blocks_of(tower), prefix_tokens(name))
    stc_video.attach_cacher(tower, CacheConfig(audits=False))
    for picture, x in zip(pictures, inputs, strict=True):
        with torch.no_grad():
            expected = oracle.encode(x)[-1]
        torch.testing.assert_close(encoder_output(tower, picture), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", TOWERS)
def test_every_token_changed_equals_dense(name):
    """Through the cached path (one bucket of all tokens) and through the dense one."""
    tower = make_tower(name)
    first, second = layer_inputs(tower, [frame(0), frame(1)])
    assert not torch.equal(first, second)
    expected = encoder_output(tower, frame(1))
    fixed = {"threshold": 0.92, "tail_layers": 0, "redo_from": None}
    for buckets, kind in (((1.0,), "cached"), ((0.5,), "dense")):
        cacher = stc_video.attach_cacher(tower, CacheConfig(**fixed, buckets=buckets))
        encoder_output(tower, frame(0))
        got = encoder_output(tower, frame(1))
        assert cacher.last_frames[0].kind == kind
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
        cacher.detach()


@pytest.mark.parametrize("name", TOWERS)
def test_an_unchanged_frame_returns_the_cached_output_bit_for_bit(backend, name):
    tower = make_tower(name)
    cacher = stc_video.attach_cacher(tower)
    for picture in walk(5):
        before = encoder_output(tower, picture)
        again = encoder_output(tower, picture)
        assert torch.equal(before, again)
        assert cacher.last_frames[0].kind == "unchanged"
        assert cacher.last_frames[0].cost == 0.0


def test_slow_drift_adds_up_until_it_is_noticed(siglip):
    """Each frame is similar to the one before, the first and the last are not."""
    cacher = stc_video.attach_cacher(siglip, CacheConfig(refresh=0.0, threshold=0.97))
    start, end = frame(0), frame(1)
    changed = 0
    for step in range(41):
        encoder_output(siglip, torch.lerp(start, end, step / 40))
        if step:
            changed += cacher.last_frames[0].changed
            assert cacher.last_frames[0].kind != "dense"
    assert changed >= 16


def test_refresh_reaches_every_token_of_a_still_scene_with_noise(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(buckets=(1 / 8,), audits=False))
    encoder_output(siglip, frame(0))
    seen = torch.zeros(16)
    for step in range(1, 9):
        encoder_output(siglip, frame(0) + 1e-4 * frame(step))
        assert cacher.last_frames[0].changed == 0
        assert cacher.last_frames[0].cost == pytest.approx(1 / 8)
        seen += cacher.last_frames[0].encoded
    assert seen.tolist() == [1.0] * 16


def test_a_cut_is_encoded_densely(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(threshold=0.92))
    encoder_output(siglip, frame(0))
    encoder_output(siglip, frame(1))
    record = cacher.last_frames[0]
    assert record.kind == "dense"
    assert record.reason == "100% of the tokens changed"


@pytest.mark.parametrize(("patches", "bucket"), [(1, 4), (2, 4), (3, 6), (6, 8), (8, 8), (9, 16)])
def test_buckets(siglip, patches, bucket):
    """Changed patches and the refresh of two are rounded up; above half it is all of them."""
    cacher = stc_video.attach_cacher(
        siglip, CacheConfig(refresh=1 / 8, redo_from=None, threshold=0.85)
    )
    encoder_output(siglip, frame(0))
    encoder_output(siglip, with_changed_patches(frame(0), list(range(patches))))
    record = cacher.last_frames[0]
    assert record.changed == patches
    assert int(record.encoded.count_nonzero()) == bucket
    assert record.encoded[:patches].eq(1).all()


def test_the_tail_needs_a_layer_before_it(siglip):
    with pytest.raises(ValueError, match=r"tail_layers must be below the number of layers \(4\)"):
        stc_video.attach_cacher(siglip, CacheConfig(tail_layers=4))
    stc_video.attach_cacher(siglip, CacheConfig(tail_layers=3))


def test_bfloat16_stays_close_to_its_own_dense(siglip):
    siglip.to(torch.bfloat16)
    picture = frame(1).bfloat16()
    expected = encoder_output(siglip, picture)
    stc_video.attach_cacher(siglip, CacheConfig(buckets=(1.0,), tail_layers=0))
    encoder_output(siglip, frame(0).bfloat16())
    got = encoder_output(siglip, picture)
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", ["siglip", "dinov2-registers"])
def test_our_attention_kernel_takes_the_place_of_torchs(monkeypatch, name):
    """What a GPU does, here with the kernel's definition."""
    tower, pictures = make_tower(name), noisy_walk(5)
    cacher = stc_video.attach_cacher(tower)
    expected = [encoder_output(tower, picture) for picture in pictures]
    cacher.reset()
    monkeypatch.setattr(
        "stc_video.towers.attention._has_sparse_kernel", lambda q, k: q.shape[1] < k.shape[1]
    )
    for picture, want in zip(pictures, expected, strict=True):
        torch.testing.assert_close(encoder_output(tower, picture), want, atol=1e-4, rtol=0)
    assert cacher.stats().cached > 0
