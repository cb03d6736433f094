# SPDX-License-Identifier: Apache-2.0
"""How soon a cacher notices that weights have changed, and that nothing else is taken for it."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, layers_of, make_tower
from torch import nn
from tower_changes import (
    CHANGES,
    CLOSE,
    adapt,
    add_to_a_bias,
    add_to_a_norm,
    assert_next_frame_is_fresh,
    attention_of,
    cut_last_block,
    in_place,
    load,
    optimizer_step,
    replace_first_block,
    replace_linear,
    replace_middle_block,
    replace_mlp,
    replace_norm,
    stock,
)

import stc_video
from stc_video.cacher import weight_watch

pytestmark = pytest.mark.usefixtures("watched_as_large")


def test_an_unchanged_tower_is_left_alone_for_many_rounds(monkeypatch):
    monkeypatch.setattr(weight_watch, "ROUND", 32)
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    with torch.inference_mode():
        for _ in range(2 * weight_watch.ROUND):
            tower(frame(0))
    stats = cacher.stats()
    assert (stats.dense, stats.unchanged, stats.resets) == (1, 2 * weight_watch.ROUND - 1, 0)


@pytest.mark.parametrize("change", [add_to_a_bias, add_to_a_norm])
def test_a_small_tensor_is_looked_at_at_one_of_the_places(change):
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, [frame(0)] * 3)
    change(tower)
    reasons = []
    for _ in range(weight_watch.PLACES):
        got = last_hidden(tower, frame(0))
        reasons += [record.reason for record in cacher.last_frames]
    assert reasons.count("the tower changed: values of the weights changed") == 1
    torch.testing.assert_close(got, stock(cacher, tower, frame(0)), **CLOSE)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_small_tower_is_looked_at_less_often(change, monkeypatch):
    monkeypatch.setattr(weight_watch, "LARGE_BYTES", 1 << 30)
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    encode(tower, [frame(0)] * 3)
    change(tower)
    reasons = []
    for _ in range(weight_watch.INTERVAL):
        got = last_hidden(tower, frame(0))
        reasons += [record.reason for record in cacher.last_frames]
    [noticed] = [n for n, reason in enumerate(reasons) if reason.startswith("the tower changed")]
    at_once = (
        in_place, load, optimizer_step, replace_linear, adapt, replace_mlp, replace_norm,
        replace_first_block, replace_middle_block, cut_last_block,
    )  # fmt: skip
    assert noticed == 0 or change not in at_once
    torch.testing.assert_close(got, stock(cacher, tower, frame(0)), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_byte_is_noticed_within_a_round(dtype, monkeypatch):
    monkeypatch.setattr(weight_watch, "ROUND", 32)
    tower = make_tower("siglip").to(dtype)
    cacher = stc_video.attach_cacher(tower)
    picture = frame(0).to(dtype)
    for number, name in enumerate(("k_proj", "q_proj", "out_proj")):
        weight = getattr(layers_of(tower)[number].self_attn, name).weight
        last_hidden(tower, picture)
        weight.data.view(-1)[37 * number + 700 :][:1] *= 1.5
        reasons = []
        for _ in range(weight_watch.ROUND):
            last_hidden(tower, picture)
            reasons += [record.reason for record in cacher.last_frames]
        assert reasons.count("the tower changed: values of the weights changed") == 1


def test_weights_of_nan_do_not_change_by_themselves():
    tower = make_tower("siglip")
    layers_of(tower)[1].mlp.fc1.weight.data.fill_(torch.nan)
    cacher = stc_video.attach_cacher(tower)
    encode(tower, [frame(0)] * 8)
    assert cacher.stats().resets == 0


def test_memory_of_any_strides_is_watched():
    tower = make_tower("siglip")
    linear = layers_of(tower)[1].mlp.fc1
    linear.weight.data = linear.weight.data.T.contiguous().T  # column by column
    layers_of(tower)[1].mlp.fc2.weight.data = torch.randn(48 * 96 + 3)[3:].view(48, 96)
    with torch.inference_mode():
        attention_of(tower).k_proj.weight = nn.Parameter(torch.randn(48, 48), requires_grad=False)
    cacher = stc_video.attach_cacher(tower)
    for weight in (linear.weight, attention_of(tower).k_proj.weight):
        encode(tower, [frame(0)] * 3)
        with torch.inference_mode():
            weight.data += 0.1
        assert_next_frame_is_fresh(cacher, tower, frame(0))


def test_weights_that_accelerate_keeps_elsewhere_are_the_same_in_every_call():
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    tower = make_tower("siglip")
    expected = last_hidden(tower, frame(0))
    blocks = layers_of(tower)
    weights = {name: value.clone() for name, value in blocks.state_dict().items()}
    hooks.attach_align_device_hook(
        blocks, execution_device="cpu", offload=True, weights_map=weights
    )
    assert blocks[0].mlp.fc1.weight.is_meta
    cacher = stc_video.attach_cacher(tower)
    for got in encode(tower, [frame(0)] * 5):
        torch.testing.assert_close(got, expected, **CLOSE)
    assert (cacher.stats().dense, cacher.stats().resets) == (1, 0)
