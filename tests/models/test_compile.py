# SPDX-License-Identifier: Apache-2.0
"""`torch.compile` around a cached tower: embeddings and head are compiled, the cacher is called."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import make_tower, noisy_walk, walk

import stc_video
from stc_video import CacheConfig


def run(tower, pictures, **settings):
    with torch.no_grad():
        return [tower(picture, **settings).last_hidden_state for picture in pictures]


@pytest.mark.parametrize(
    "config",
    [CacheConfig(batching="bucketed", audits=False), CacheConfig("stc")],
    ids=["motion", "stc"],
)
def test_a_compiled_tower_gives_the_same(siglip, config):
    torch._dynamo.reset()
    tower, pictures = siglip, walk(6)
    cacher = stc_video.attach_cacher(tower, config)
    expected = run(tower, pictures)
    cacher.reset()
    compiled = torch.compile(tower, backend="eager")
    got = run(compiled, pictures)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    stats = cacher.stats().streams["default"]
    assert stats.frames == 12
    assert stats.cached >= 6
    with cacher.streams(["a", "b"]):
        both = run(compiled, [torch.cat([picture] * 2) for picture in pictures])
    for pair, want in zip(both, expected, strict=True):
        torch.testing.assert_close(pair, torch.cat([want] * 2), atol=1e-5, rtol=0)


def test_a_tower_that_was_compiled_first_can_be_cached():
    torch._dynamo.reset()
    tower, pictures = make_tower("siglip"), walk(6)
    compiled = torch.compile(tower, backend="eager")
    stock = run(compiled, pictures[:1])
    cacher = stc_video.attach_cacher(tower, audits=False)
    got = run(compiled, pictures)
    assert cacher.stats().cached >= 3
    cacher.detach()
    torch.testing.assert_close(got[0], stock[0], atol=2e-5, rtol=0)
    assert torch.equal(run(compiled, pictures[:1])[0], stock[0])


@pytest.mark.long
def test_with_the_default_compiler():
    torch._dynamo.reset()
    # Noise, so that rounding differently does not choose among equally stale tokens.
    tower, pictures = make_tower("siglip"), noisy_walk(4)
    cacher = stc_video.attach_cacher(tower)
    expected = run(tower, pictures)
    cacher.reset()
    got = run(torch.compile(tower), pictures)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
