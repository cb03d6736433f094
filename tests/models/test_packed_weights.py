# SPDX-License-Identifier: Apache-2.0
"""The second copy of the weights on a CPU."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, last_hidden, make_tower, walk

import stc_video
from stc_video import CacheConfig


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_counted_follow_changes_and_go(dtype):
    tower = make_tower("siglip").to(dtype)
    pictures = [picture.to(dtype) for picture in walk(4)]
    plain = stc_video.attach_cacher(tower, CacheConfig(pack_weights=False))
    expected = encode(tower, pictures)
    assert plain.stats().packed_bytes == 0
    plain.detach()
    cacher = stc_video.attach_cacher(tower)
    tolerance = 2e-5 if dtype == torch.float32 else 0.05
    for got, want in zip(encode(tower, pictures), expected, strict=True):
        torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)
    weights = 4 * (4 * 48 * 48 + 2 * 48 * 96) * dtype.itemsize
    is_packed = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert cacher.stats().packed_bytes == (weights if is_packed else 0)
    # Weights that change in place must not leave a stale copy in use.
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.9)
    cacher.reset()
    with cacher.paused():
        stock = last_hidden(tower, pictures[0])
    torch.testing.assert_close(
        last_hidden(tower, pictures[0]), stock, atol=tolerance, rtol=tolerance
    )
    cacher.detach()
    assert not any("forward" in module.__dict__ for module in tower.modules())
