# SPDX-License-Identifier: Apache-2.0
"""A cached tower is for inference: what cannot be right says so, and nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import frame, make_tower, walk

from stc_video import attach_cacher, attach_tome

ATTACH = {"cacher": attach_cacher, "tome": lambda tower: attach_tome(tower, 8)}


@pytest.mark.parametrize("attach", ATTACH.values(), ids=ATTACH.keys())
@pytest.mark.parametrize("trained", ["input", "weights", "a block"])
def test_nobody_trains_through_a_tower_by_mistake(attach, trained):
    tower, picture = make_tower("siglip"), frame(0)
    tower.requires_grad_(trained == "weights")
    if trained == "a block":
        next(p for n, p in tower.named_parameters() if "layers.1.mlp" in n).requires_grad_()
    picture.requires_grad_(trained == "input")
    attach(tower)
    output = tower(picture).last_hidden_state
    with torch.no_grad():
        assert output.shape == tower(picture).last_hidden_state.shape
    with pytest.raises(RuntimeError, match=r"backward: a tower with a cacher or a token merger"):
        output.sum().backward()


def test_what_comes_behind_frozen_blocks_may_be_trained():
    tower = make_tower("siglip").requires_grad_(False)
    attach_cacher(tower)
    output = tower(frame(0)).last_hidden_state
    assert not output.requires_grad
    head = torch.nn.Linear(output.shape[-1], 1)
    head(output).sum().backward()
    assert head.weight.grad is not None


def test_tracing_is_refused():
    tower = make_tower("siglip")
    cacher = attach_cacher(tower)
    with pytest.raises(RuntimeError, match=r"cannot be traced"):
        torch.jit.trace(lambda x: tower(x).last_hidden_state, frame(0))
    assert cacher.stats().frames == 0


@pytest.mark.parametrize("policy", ["motion", "stc"])
@torch.no_grad()
def test_an_empty_batch_is_refused_and_no_frame(policy):
    tower, frames = make_tower("siglip"), walk(2)
    cacher = attach_cacher(tower, policy)
    tower(frames[0])
    with pytest.raises(ValueError, match="a call must have a frame, got none"):
        tower(frames[0][:0])
    assert cacher.stats().frames == 1
    tower(frames[1])
    assert cacher.stats().resets == 0


@torch.no_grad()
def test_nothing_is_kept_of_streams_that_are_gone():
    tower = make_tower("siglip")
    cacher = attach_cacher(tower)
    for name in ("a", "b"):
        with cacher.streams([name]):
            tower(frame(0))
    cacher.reset("a")
    cacher.remove("b")
    assert not cacher._self_check.met
