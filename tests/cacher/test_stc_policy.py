# SPDX-License-Identifier: Apache-2.0
"""The `stc` policy against a straightforward version of the paper's arithmetic."""

from __future__ import annotations

import pytest
import torch
from stc_oracle import StcOracle, blocks_of
from tiny_towers import (
    TOWERS,
    encoder_output,
    frame,
    layer_inputs,
    make_tower,
    noisy_walk,
    prefix_tokens,
    walk,
)

import stc_video
from stc_video import CacheConfig


def hidden_states(tower, picture):
    with torch.no_grad():
        return tower(picture, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(("interval", "ratio"), [(2, 0.25), (3, 0.5), (4, 0.4)])
def test_agrees_with_the_oracle(backend, name, interval, ratio):
    tower = make_tower(name)
    pictures = noisy_walk(7)
    inputs = layer_inputs(tower, pictures)
    oracle = StcOracle(blocks_of(tower), ratio, interval, prefix_tokens(name))
    with torch.no_grad():
        expected = [oracle.encode(x) for x in inputs]
    stc_video.attach_cacher(tower, CacheConfig("stc", ratio=ratio, interval=interval))
    for picture, target in zip(pictures, expected, strict=True):
        got = encoder_output(tower, picture)
        assert float(target.std()) > 0.5, "activations must be of order one for the bound to mean"
        torch.testing.assert_close(got, target, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2"])
def test_calls_of_several_frames(name):
    """All frames of a cached call are compared with the last frame of the last dense call."""
    tower = make_tower(name)
    pictures = noisy_walk(9)
    batches = [torch.cat(pictures[start : start + 3]) for start in (0, 3, 6)]
    inputs = layer_inputs(tower, batches)
    oracle = StcOracle(blocks_of(tower), 0.25, 3, prefix_tokens(name))
    with torch.no_grad():
        expected = [oracle.encode(x) for x in inputs]
    cacher = stc_video.attach_cacher(tower, CacheConfig("stc", interval=3))
    for batch, target in zip(batches, expected, strict=True):
        torch.testing.assert_close(encoder_output(tower, batch), target, atol=1e-4, rtol=0)
    assert (cacher.stats().dense, cacher.stats().cached) == (3, 6)


@pytest.mark.parametrize("name", TOWERS)
def test_ratio_one_and_an_unchanged_frame_are_dense(name):
    tower = make_tower(name)
    pictures = walk(4)
    dense = [hidden_states(tower, picture) for picture in pictures]
    cacher = stc_video.attach_cacher(tower, CacheConfig("stc", ratio=1.0, interval=4))
    for picture, expected in zip(pictures, dense, strict=True):
        for got, layer in zip(hidden_states(tower, picture), expected, strict=True):
            torch.testing.assert_close(got, layer, atol=2e-5, rtol=0)
    assert cacher.stats().cached == 3
    cacher.detach()
    stc_video.attach_cacher(tower, CacheConfig("stc", ratio=0.1, interval=4))
    hidden_states(tower, pictures[0])
    for got, layer in zip(hidden_states(tower, pictures[0]), dense[0], strict=True):
        torch.testing.assert_close(got, layer, atol=2e-5, rtol=0)


def test_interval_one_is_always_dense():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, CacheConfig("stc", interval=1))
    for picture in walk(3):
        tower(picture)
    assert cacher.stats().dense == 3
    assert cacher.stats().cost == 1.0


def test_comparing_values_re_encodes_keys_instead():
    tower = make_tower("siglip")
    pictures = walk(3)
    dense = [hidden_states(tower, picture)[-1] for picture in pictures]
    cacher = stc_video.attach_cacher(
        tower, CacheConfig("stc", metric="values", ratio=0.5, interval=9)
    )
    errors = [
        float((hidden_states(tower, picture)[-1] - expected).abs().max())
        for picture, expected in zip(pictures, dense, strict=True)
    ]
    assert errors[0] < 2e-5
    assert errors[1] > 1e-3
    cacher.detach()
    stc_video.attach_cacher(tower, CacheConfig("stc", metric="values", ratio=1.0, interval=9))
    for picture, expected in zip(pictures, dense, strict=True):
        torch.testing.assert_close(hidden_states(tower, picture)[-1], expected, atol=2e-5, rtol=0)


def test_a_threshold_re_encodes_what_changed():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, CacheConfig("stc", threshold=0.99, interval=9))
    tower(frame(0))
    tower(frame(0))
    nothing = cacher.last_frames[0]
    tower(frame(1))
    everything = cacher.last_frames[0]
    assert nothing.encoded.sum() <= 1.01
    assert everything.encoded.mean() > 0.9
    assert nothing.cost < 0.2 < everything.cost


def test_cost_is_the_published_one():
    """0.309 of a dense frame at a ratio of a quarter in SigLIP-so400m's geometry."""
    from stc_video.cacher.stats import Operations

    operations = Operations(channels=1152, mlp=2 * 1152 * 4304)
    share = operations.rows_with_fresh_keys(182, 729) / operations.dense(729)
    assert share == pytest.approx(0.309, abs=5e-4)
