# SPDX-License-Identifier: Apache-2.0
"""What is kept between frames, and when it is dropped."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, layers_of, make_tower, walk

import stc_video
from stc_video import CacheConfig

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("policy", POLICIES)
def test_state_bytes_are_constant_and_counted_right(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    sizes = set()
    with torch.no_grad():
        for picture in walk(12):
            siglip(picture)
            sizes.add(cacher.stats().state_bytes)
    assert len(sizes) == 1
    plane = 16 * 48 * 4  # tokens x channels x float32
    if policy == "stc":
        assert sizes == {3 * 4 * plane}
    else:
        state = cacher._streams["default"].state
        assert sizes == {sum(tensor.nbytes for tensor in state.tensors())}
        assert 2 * 4 * plane < sizes.pop() < 2 * 4 * plane + 6 * plane


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_never_poisons_the_cache(siglip, policy, bad):
    pictures = walk(6)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy, interval=9))
    expected = encode(siglip, pictures)
    cacher.detach()
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy, interval=9))
    spoilt = frame(60)
    spoilt[0, 1, 3, 5] = bad
    for number, picture in enumerate(pictures):
        torch.testing.assert_close(last_hidden(siglip, picture), expected[number])
        assert last_hidden(siglip, spoilt).isnan().any()
        record = cacher.last_frames[0]
        assert record.kind == "dense"
        assert "NaN or Inf" in record.reason
    assert cacher.stats().nonfinite == 6


@pytest.mark.parametrize("policy", POLICIES)
def test_nan_inside_a_batch_and_at_the_start(siglip, policy):
    spoilt = torch.full((1, 3, 56, 56), float("nan"))
    pictures = walk(3)
    cacher = stc_video.attach_cacher(siglip, CacheConfig(policy, interval=2))
    first = last_hidden(siglip, torch.cat([spoilt, pictures[0], spoilt]))
    assert [record.kind for record in cacher.last_frames] == ["dense"] * 3
    assert first[1].isfinite().all()
    second = last_hidden(siglip, torch.cat([pictures[0], spoilt, pictures[1]]))
    assert second[[0, 2]].isfinite().all()
    assert cacher.last_frames[0].kind != "dense"
    assert cacher.stats().nonfinite == 3


@pytest.mark.parametrize("policy", POLICIES)
def test_another_resolution_starts_the_stream_afresh(policy):
    tower = make_tower("siglip")
    large = torch.rand(1, 3, 84, 84)
    cacher = stc_video.attach_cacher(tower, policy)
    with torch.no_grad():
        tower(frame(0))
        got = tower(large, interpolate_pos_encoding=True).last_hidden_state
        record = cacher.last_frames[0]
        with cacher.paused():
            expected = tower(large, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    assert record.kind == "dense"
    assert "layout changed to 36 tokens" in record.reason
    assert cacher.stats().resets == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_another_dtype_starts_the_stream_afresh(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    last_hidden(siglip, frame(0))
    siglip.to(torch.bfloat16)
    output = last_hidden(siglip, frame(0).bfloat16())
    assert output.dtype == torch.bfloat16
    assert "bfloat16" in cacher.last_frames[0].reason
    last_hidden(siglip, frame(0).bfloat16())
    assert cacher.last_frames[0].kind != "dense"


@pytest.mark.parametrize("policy", POLICIES)
def test_inference_mode_and_no_grad_may_take_turns(siglip, policy):
    stc_video.attach_cacher(siglip, policy)
    for number, picture in enumerate(walk(6)):
        with torch.inference_mode() if number % 2 == 0 else torch.no_grad():
            siglip(picture)
    output = siglip(walk(6)[-1]).last_hidden_state
    assert not output[0, 0].requires_grad or output.grad_fn is not None


def test_training_is_refused(siglip):
    stc_video.attach_cacher(siglip)
    siglip.train()
    with pytest.raises(RuntimeError, match="call eval"):
        siglip(frame(0))


def test_pausing_runs_the_stock_tower_and_touches_nothing(siglip):
    expected = last_hidden(siglip, frame(9))
    cacher = stc_video.attach_cacher(siglip)
    last_hidden(siglip, frame(0))
    before = cacher.stats()
    with cacher.paused():
        assert torch.equal(last_hidden(siglip, frame(9)), expected)
        with torch.no_grad():
            assert siglip(frame(9), output_hidden_states=True).hidden_states is not None
    assert cacher.stats() == before


@pytest.mark.parametrize("policy", POLICIES)
def test_a_call_that_fails_half_way_leaves_no_half_written_state(siglip, policy):
    pictures, has_room = walk(4), True

    def fail(*_: object) -> None:
        if not has_room:
            raise MemoryError("no room")

    layers_of(siglip)[2].mlp.register_forward_pre_hook(fail)
    cacher = stc_video.attach_cacher(siglip, policy)
    with cacher.streams(["bystander"]):
        expected = encode(siglip, pictures)
    encode(siglip, pictures[:2])
    with cacher.streams(["bystander"]):
        cacher.reset("bystander")
        encode(siglip, pictures[:1])

    has_room = False
    with pytest.raises(MemoryError):
        last_hidden(siglip, pictures[2])
    has_room = True
    got = last_hidden(siglip, pictures[2])
    assert cacher.last_frames[0].reason == "the call before failed"
    with cacher.paused():
        stock = last_hidden(siglip, pictures[2])
    torch.testing.assert_close(got, stock, atol=2e-5, rtol=0)
    with cacher.streams(["bystander"]):
        rest = encode(siglip, pictures[1:])
    assert all(torch.equal(a, b) for a, b in zip(rest, expected[1:], strict=True))
