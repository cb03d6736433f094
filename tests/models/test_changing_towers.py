# SPDX-License-Identifier: Apache-2.0
"""Weights and modules that change while a cacher is attached."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, layers_of, make_tower, noisy_walk
from torch import nn
from tower_changes import (
    CHANGES,
    CLOSE,
    POLICIES,
    adapt,
    add_to_data,
    assert_next_frame_is_fresh,
    cut_last_block,
    in_place,
    new_parameter,
    replace_forward,
    replace_middle_block,
    replace_mlp,
    set_data,
    stock,
)

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.cacher import weight_watch

pytestmark = pytest.mark.usefixtures("watched_as_large")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_in_mid_stream_counts_from_the_next_frame_on(change, policy):
    tower, pictures = make_tower("siglip"), noisy_walk(4)
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy, interval=9))
    encode(tower, pictures)
    before = stock(cacher, tower, pictures[-1])
    change(tower)
    assert not torch.allclose(stock(cacher, tower, pictures[-1]), before, atol=1e-3)
    assert_next_frame_is_fresh(cacher, tower, pictures[-1])
    reasons = [record.reason for record in cacher.last_frames]
    cacher.detach(force=True)
    assert not any("the tower changed" in reason for reason in reasons), "noticed once"


@pytest.mark.parametrize("batching", ["ragged", "bucketed"])
@pytest.mark.parametrize("pack_weights", [True, False])
def test_no_copy_and_no_recording_of_old_weights_is_left(batching, pack_weights):
    tower, pictures = make_tower("siglip"), noisy_walk(6)
    config = CacheConfig(batching=batching, pack_weights=pack_weights)
    cacher = stc_video.attach_cacher(tower, config)
    encode(tower, pictures)
    for change in (add_to_data, set_data, in_place, adapt, replace_middle_block, cut_last_block):
        change(tower)
        if cacher.stats().graphs is not None:
            recorded = cacher.stats().graphs.recorded
        assert_next_frame_is_fresh(cacher, tower, pictures[0])
        if recorded_after := cacher.stats().graphs:
            assert recorded_after.recorded > (0 if change is not set_data else recorded)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_data, "the weights changed (encoder.layers.1.self_attn.out_proj.weight)"),
        (new_parameter, "the weights changed (encoder.layers.0.mlp.fc1.weight)"),
        (replace_mlp, "modules were put in (encoder.layers.1.mlp)"),
        (cut_last_block, "modules were taken out"),
        (replace_forward, "a module's forward was replaced"),
        (add_to_data, "values of the weights changed"),
    ],
)
def test_the_reason_names_what_changed(change, reason):
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, noisy_walk(2))
    change(tower)
    last_hidden(tower, frame(3))
    got = cacher.last_frames[0].reason.replace("vision_model.", "")
    assert got == "the tower changed: " + reason


@pytest.mark.parametrize("batching", ["ragged", "bucketed"])
@pytest.mark.parametrize("policy", POLICIES)
def test_another_dtype_counts_at_once_in_a_small_tower(policy, batching, monkeypatch):
    monkeypatch.setattr(weight_watch, "LARGE_BYTES", 1 << 30)
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, policy, batching=batching, interval=9)
    encode(tower, noisy_walk(2))
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        tower.to(dtype)
        got = last_hidden(tower, frame(3).to(dtype))
        expected = stock(cacher, tower, frame(3).to(dtype))
        torch.testing.assert_close(got, expected, atol=0.06, rtol=0.06)
        assert cacher.last_frames[0].kind == "dense"
        for number in range(weight_watch.INTERVAL + 1):
            last_hidden(tower, frame(number).to(dtype))
            assert "the tower changed" not in cacher.last_frames[0].reason


def test_changes_one_right_after_the_other_are_each_noticed():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, noisy_walk(2))
    for change in (add_to_data, add_to_data, adapt, add_to_data, set_data):
        change(tower)
        got = last_hidden(tower, frame(3))
        assert cacher.last_frames[0].reason.startswith("the tower changed")
        torch.testing.assert_close(got, stock(cacher, tower, frame(3)), **CLOSE)


def test_a_layer_that_others_patched_since_is_said_before_anything_changes():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, noisy_walk(2))
    layer = layers_of(tower)[1]
    ours = layer.forward
    layer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    adapt(tower)
    with pytest.raises(AttachError, match=r"patched layer 1.*force=True"):
        last_hidden(tower, frame(0))
    layer.forward = ours
    assert_next_frame_is_fresh(cacher, tower, frame(0))


def test_a_call_that_enters_below_the_root_looks_too():
    tower = make_tower("clip-with-projection")
    if tower.vision_model(frame(0), output_hidden_states=True).hidden_states is None:
        pytest.skip("in this release hidden states are collected by the outermost model alone")
    cacher = stc_video.attach_cacher(tower)
    encode(tower.vision_model, [frame(0)] * 2)
    for change in (add_to_data, adapt, replace_middle_block):
        change(tower)
        assert_next_frame_is_fresh(cacher, tower.vision_model, frame(0))


def test_streams_of_every_name_start_over():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    both = torch.cat([frame(0), frame(1)])
    with cacher.streams(["a", "b"]):
        encode(tower, [both] * 2)
        set_data(tower)
        with cacher.paused():
            expected = last_hidden(tower, both)
        with cacher.streams("b"):
            got = last_hidden(tower, frame(1))
        torch.testing.assert_close(got, expected[1:], **CLOSE)
        torch.testing.assert_close(last_hidden(tower, both), expected, **CLOSE)
    assert [record.kind for record in cacher.last_frames] == ["dense", "unchanged"]
    assert cacher.stream_state("a").state is not None
    set_data(tower)
    assert cacher.stream_state("a").state is None, "nothing of old weights is saved"


def test_a_tower_that_is_no_longer_supported_says_so_and_has_no_cacher():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, noisy_walk(2))
    del layers_of(tower)[1].mlp
    layers_of(tower)[1].feed_forward = nn.Identity()
    with pytest.raises(UnsupportedModelError, match="SiglipEncoderLayer is not a supported block"):
        last_hidden(tower, frame(0))
    assert "detached" in repr(cacher)
    assert cacher.stats().frames == 2
    assert not any("forward" in vars(module) for module in tower.modules())


def test_refresh_drops_what_nobody_can_see():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    activation = layers_of(tower)[1].mlp
    encode(tower, noisy_walk(3))
    activation.activation_fn.__class__ = type(
        "Louder", (nn.Module,), {"forward": lambda self, x: 2 * torch.relu(x)}
    )
    cacher.refresh()
    got = last_hidden(tower, frame(0))
    torch.testing.assert_close(got, stock(cacher, tower, frame(0)), **CLOSE)
    assert cacher.last_frames[0].reason == "the tower changed: refresh() was called"
    cacher.refresh()
    cacher.refresh()
    cacher.detach()
    cacher.refresh()
    assert cacher.stats().resets == 2
