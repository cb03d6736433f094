# SPDX-License-Identifier: Apache-2.0
"""SigLIP2: padding, masks and grids."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import siglip2, siglip2_arguments

import stc_video
from stc_video import CacheConfig

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("policy", POLICIES)
def test_siglip2_with_padding(policy):
    tower = siglip2()
    arguments = siglip2_arguments(1, (3, 4))
    with torch.no_grad():
        expected = tower(**arguments).last_hidden_state
        cacher = stc_video.attach_cacher(tower, policy)
        for _ in range(2):
            got = tower(**arguments).last_hidden_state
            torch.testing.assert_close(got[:, :12], expected[:, :12], atol=2e-5, rtol=0)
        assert cacher.stats().dense == 1
        # Sixteen places as before, but another grid.
        turned = siglip2_arguments(1, (4, 3))
        tower(**turned)
    assert "layout changed" in cacher.last_frames[0].reason
    assert "4x3" in cacher.last_frames[0].reason


def test_siglip2_masks_padding_in_cached_frames():
    """Every token re-encoded through the cached path equals the dense, masked frame."""
    tower = siglip2()
    first, second = siglip2_arguments(1, (3, 4)), siglip2_arguments(1, (3, 4), seed=1)
    with torch.no_grad():
        expected = tower(**second).last_hidden_state
        cacher = stc_video.attach_cacher(tower, CacheConfig("stc", ratio=1.0, interval=9))
        tower(**first)
        got = tower(**second).last_hidden_state
        torch.testing.assert_close(got[:, :12], expected[:, :12], atol=2e-5, rtol=0)
        cacher.detach()
        cacher = stc_video.attach_cacher(tower, CacheConfig(buckets=(1.0,)))
        tower(**first)
        got = tower(**second).last_hidden_state
    assert cacher.last_frames[0].kind == "cached"
    torch.testing.assert_close(got[:, :12], expected[:, :12], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kernel", [False, True])
def test_padding_is_nobodys_key_whichever_attention_runs(monkeypatch, kernel):
    tower = siglip2()
    first, second = siglip2_arguments(1, (3, 4)), siglip2_arguments(1, (3, 4), seed=1)
    monkeypatch.setattr("stc_video.towers.attention._has_sparse_kernel", lambda _q, _k: kernel)
    with torch.no_grad():
        expected = tower(**second).last_hidden_state
        cacher = stc_video.attach_cacher(tower, CacheConfig(buckets=(1.0,)))
        tower(**first)
        got = tower(**second).last_hidden_state
    assert cacher.last_frames[0].kind == "cached"
    torch.testing.assert_close(got[:, :12], expected[:, :12], atol=2e-5, rtol=0)
