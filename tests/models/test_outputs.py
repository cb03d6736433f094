# SPDX-License-Identifier: Apache-2.0
"""What a cached tower returns, and to whom it belongs."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import TOWERS, encode, frame, last_hidden, make_tower, walk

import stc_video

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_dense_frame_is_the_stock_frame(name, policy):
    tower = make_tower(name)
    with torch.no_grad():
        expected = tower(frame(0), output_hidden_states=True)
        stc_video.attach_cacher(tower, policy)
        got = tower(frame(0), output_hidden_states=True)
    assert len(got.hidden_states) == len(expected.hidden_states)
    for a, b in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=0)
    for a, b in zip(got.to_tuple(), expected.to_tuple(), strict=True):
        if isinstance(a, torch.Tensor):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=0)


@pytest.mark.parametrize("policy", POLICIES)
def test_outputs_belong_to_the_caller(siglip, policy):
    stc_video.attach_cacher(siglip, policy)
    kept = [last_hidden(siglip, picture) for picture in walk(10)]
    copies = [output.clone() for output in kept]
    encode(siglip, walk(10))
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    kept[-1].fill_(1e6)
    assert last_hidden(siglip, walk(10)[-1]).abs().max() < 1e3


@pytest.mark.parametrize("policy", POLICIES)
def test_hidden_states_asked_for_in_the_middle_of_a_stream(siglip, policy):
    pictures = walk(6)
    whole = stc_video.attach_cacher(siglip, policy)
    with torch.no_grad():
        full = [siglip(p, output_hidden_states=True).hidden_states for p in pictures]
    whole.detach()
    cacher = stc_video.attach_cacher(siglip, policy)
    with torch.no_grad():
        for picture in pictures[:2]:
            assert siglip(picture).hidden_states is None
        states = siglip(pictures[2], output_hidden_states=True).hidden_states
    assert len(states) == len(full[2])
    if policy == "motion":
        assert cacher.last_frames[0].kind == "dense"
        assert "hidden states" in cacher.last_frames[0].reason
    else:
        for a, b in zip(states, full[2], strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_forward_hook_of_the_user_sees_true_features(siglip, policy):
    pictures = walk(5)
    cacher = stc_video.attach_cacher(siglip, policy)
    with torch.no_grad():
        expected = [siglip(p, output_hidden_states=True).hidden_states[2] for p in pictures]
    cacher.detach()
    cacher = stc_video.attach_cacher(siglip, policy)
    seen = []
    layer = siglip.get_submodule(cacher._tower.path)[1]
    layer.register_forward_hook(lambda _m, _a, out: seen.append(out))
    encode(siglip, [])
    with torch.no_grad():
        for picture in pictures:
            siglip(picture)
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a[0] if isinstance(a, tuple) else a, b)


def test_attention_weights_are_refused_before_any_layer_runs(siglip):
    cacher = stc_video.attach_cacher(siglip)
    with pytest.raises(ValueError, match="output_attentions is not available"):
        siglip(frame(0), output_attentions=True)
    assert cacher.stats().frames == 0
    last_hidden(siglip, frame(0))
