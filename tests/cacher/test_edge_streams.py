# SPDX-License-Identifier: Apache-2.0
"""Streams that a camera does not send every day. What happens then is in docs/cacher.md."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, make_tower, walk, with_changed_patches
from torch import Tensor, nn

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import Cacher

POLICIES = ["motion", "stc"]


def dense(tower: nn.Module, cacher: Cacher, picture: Tensor) -> Tensor:
    with cacher.paused():
        return last_hidden(tower, picture)


def likeness(a: Tensor, b: Tensor) -> float:
    """Mean cosine over the tokens."""
    return float(torch.cosine_similarity(a, b, dim=-1).mean())


def test_motion_sees_a_cut(siglip):
    cacher = stc_video.attach_cacher(siglip)
    encode(siglip, walk(3)[:1] * 2)
    got = last_hidden(siglip, frame(40))
    assert cacher.last_frames[0].kind == "dense"
    torch.testing.assert_close(got, dense(siglip, cacher, frame(40)), atol=2e-5, rtol=0)


def test_stc_does_not_see_a_cut_until_its_next_dense_call(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig("stc", interval=3))
    encode(siglip, [frame(0)])
    got = [last_hidden(siglip, frame(40)) for _ in range(3)]
    wrong = [likeness(output, dense(siglip, cacher, frame(40))) for output in got]
    assert wrong[0] < 0.99
    assert wrong[2] > 0.9999


def test_frozen_video(siglip):
    """`motion` encodes the first frame only; `stc` goes on by its schedule."""
    for policy, costs in (("motion", [1.0] + [0.0] * 5), ("stc", None)):
        cacher = stc_video.attach_cacher(siglip, policy)
        expected, seen = dense(siglip, cacher, frame(0)), []
        for _ in range(6):
            got = last_hidden(siglip, frame(0))
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
            seen.append(cacher.last_frames[0].cost)
        if costs is None:
            assert seen[0::2] == [1.0] * 3
            assert all(0 < cost < 0.5 for cost in seen[1::2])
        else:
            assert seen == costs
        cacher.detach()


def test_alternating_scenes_are_dense_each_time(siglip):
    cacher = stc_video.attach_cacher(siglip)
    for number in range(8):
        shown = frame(number % 2)
        got = last_hidden(siglip, shown)
        assert cacher.last_frames[0].kind == "dense"
        torch.testing.assert_close(got, dense(siglip, cacher, shown), atol=2e-5, rtol=0)


def test_a_blinking_region_is_encoded_each_time(siglip):
    """What comes back is not taken for unchanged: a token is compared with its last encoding."""
    cacher = stc_video.attach_cacher(siglip, CacheConfig(refresh=0.0, threshold=0.95))
    shown = [frame(0), with_changed_patches(frame(0), [5, 6])]
    encode(siglip, shown[:1])
    for number in range(1, 9):
        last_hidden(siglip, shown[number % 2])
        record = cacher.last_frames[0]
        assert record.changed == 2
        assert record.encoded[[5, 6]].tolist() == [1.0, 1.0]


def test_one_pixel_noise_costs_the_refresh_only(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(audits=False))
    encode(siglip, [frame(0)])
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        shown = frame(0)
        row, column = torch.randint(0, 56, (2,), generator=generator).tolist()
        shown[..., row, column] += 0.05
        got = last_hidden(siglip, shown)
        record = cacher.last_frames[0]
        assert record.changed == 0
        assert record.kind == "cached"
        assert record.cost == pytest.approx(1 / 16)
        assert likeness(got, dense(siglip, cacher, shown)) > 0.99


def test_a_brightness_ramp_is_followed(siglip):
    """Too slow to notice from one frame to the next, it adds up until tokens are sent."""
    cacher = stc_video.attach_cacher(siglip, CacheConfig(threshold=0.98))
    sent, worst = torch.zeros(16), 1.0
    for step in range(41):
        shown = frame(0) * (1.0 + step / 20)
        got = last_hidden(siglip, shown)
        worst = min(worst, likeness(got, dense(siglip, cacher, shown)))
        if step:
            sent += cacher.last_frames[0].encoded
    assert sent.min() >= 1
    assert worst > 0.95
    assert cacher.stats().cost < 0.75


@pytest.mark.parametrize("policy", POLICIES)
def test_another_size_every_frame_is_dense_every_frame(policy):
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, policy)
    sizes = set()
    with torch.no_grad():
        for number in range(9):
            side = (56, 70, 84)[number % 3]
            shown = torch.rand((1, 3, side, side), generator=torch.Generator().manual_seed(number))
            got = tower(shown, interpolate_pos_encoding=True).last_hidden_state
            assert cacher.last_frames[0].kind == "dense"
            with cacher.paused():
                expected = tower(shown, interpolate_pos_encoding=True).last_hidden_state
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
            sizes.add((side, cacher.stats().state_bytes))
    assert len(sizes) == 3, "the state has the size of the frame, whatever came before"
    assert cacher.stats().resets == 8


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_frames_in_between_leave_no_trace(siglip, policy):
    pictures = walk(5)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy, interval=9))
    expected = encode(siglip, pictures)
    cacher.reset()
    bad = torch.full_like(pictures[0], torch.nan)
    for shown, want in zip(pictures, expected, strict=True):
        torch.testing.assert_close(last_hidden(siglip, shown), want)
        assert last_hidden(siglip, bad).isnan().any()
        assert "NaN or Inf" in cacher.last_frames[0].reason
    assert cacher.stats().nonfinite == 5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("rows", [1, 2, 6])
def test_a_frame_depends_on_no_later_one(siglip, policy, rows):
    """Whatever follows, in the same call or in later ones."""
    pictures = walk(6)
    cacher = stc_video.attach_cacher(siglip, policy)

    def run(shown: list[Tensor]) -> Tensor:
        cacher.reset()
        return torch.cat(
            [last_hidden(siglip, torch.cat(shown[at : at + rows])) for at in range(0, 6, rows)]
        )

    one = run(pictures)
    for count in range(1, 6):
        other = run([*pictures[:count], *(frame(70 + n) for n in range(6 - count))])
        torch.testing.assert_close(one[:count], other[:count], atol=1e-6, rtol=0)
        assert not torch.allclose(one[count], other[count], atol=1e-2)
