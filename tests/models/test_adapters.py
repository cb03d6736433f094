# SPDX-License-Identifier: Apache-2.0
"""Adapters and patches of others on a tower that a cacher is attached to."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, make_tower, noisy_walk
from torch import nn
from tower_changes import (
    CLOSE,
    POLICIES,
    Adapted,
    adapt,
    assert_next_frame_is_fresh,
    attention_of,
    replace_forward,
    replace_middle_block,
    replace_mlp,
    stock,
)

import stc_video
from stc_video import CacheConfig

tiny_qwen = pytest.importorskip("tiny_qwen", exc_type=ImportError)  # transformers from 4.57 on

pytestmark = pytest.mark.usefixtures("watched_as_large")


class TestAdapters:
    @pytest.mark.parametrize("policy", POLICIES)
    def test_switching_scaling_and_merging(self, policy):
        tower, pictures = make_tower("siglip"), noisy_walk(3)
        cacher = stc_video.attach_cacher(tower, policy)
        encode(tower, pictures)
        plain = stock(cacher, tower, pictures[0])
        adapt(tower)
        adapters = [module for module in tower.modules() if isinstance(module, Adapted)]
        assert_next_frame_is_fresh(cacher, tower, pictures[0], "modules were put in")
        adapted = stock(cacher, tower, pictures[0])
        assert not torch.allclose(adapted, plain, atol=1e-2)
        for adapter in adapters:
            adapter.scaling["default"] = 0.5
        assert_next_frame_is_fresh(cacher, tower, pictures[0], "settings of a module changed")
        for adapter in adapters:
            adapter.scaling["default"] = 1.0
            adapter.disabled = True
        assert_next_frame_is_fresh(cacher, tower, pictures[0], "settings of a module changed")
        torch.testing.assert_close(stock(cacher, tower, pictures[0]), plain, **CLOSE)
        for adapter in adapters:
            adapter.disabled = False
            adapter.merge()
        assert_next_frame_is_fresh(cacher, tower, pictures[0])
        torch.testing.assert_close(stock(cacher, tower, pictures[0]), adapted, **CLOSE)

    @pytest.mark.parametrize("policy", POLICIES)
    def test_peft(self, policy):
        peft = pytest.importorskip("peft", reason="peft is not installed")
        tower, pictures = make_tower("siglip"), noisy_walk(3)
        cacher = stc_video.attach_cacher(tower, policy)
        encode(tower, pictures)
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "v_proj", "fc1"], init_lora_weights=False
        )
        model = peft.get_peft_model(tower, config).eval()
        assert_next_frame_is_fresh(cacher, tower, pictures[0], "modules were put in")
        with model.disable_adapter():
            assert_next_frame_is_fresh(cacher, tower, pictures[0], "settings of a module changed")
        assert_next_frame_is_fresh(cacher, tower, pictures[0], "settings of a module changed")
        for change in (model.merge_adapter, model.unmerge_adapter):
            change()
            assert_next_frame_is_fresh(cacher, tower, pictures[0])
        merged = model.merge_and_unload()
        assert_next_frame_is_fresh(cacher, merged, pictures[0], "modules were taken out")

    @pytest.mark.parametrize("policy", POLICIES)
    @pytest.mark.parametrize("name", tiny_qwen.TOWERS)
    def test_towers_of_packed_frames(self, name, policy):
        tower = tiny_qwen.make_tower(name)
        one = tiny_qwen.video(tower, 1)[0]
        cacher = stc_video.attach_cacher(tower, CacheConfig(policy, interval=9))
        merger = tower.merger
        linears = [n for n, module in merger.named_modules() if type(module) is nn.Linear]

        def adapt_qkv():
            for block in tower.blocks:
                block.attn.qkv = Adapted(block.attn.qkv)

        def adapt_merger():
            parent, _, leaf = linears[0].rpartition(".")
            owner = merger.get_submodule(parent)
            adapted = Adapted(owner.get_submodule(leaf))
            owner._modules[leaf] = adapted

        def replace_merger():
            tower.merger = copy.deepcopy(merger)
            tower.merger.get_submodule(linears[-1]).bias.data += 0.5

        for change in (adapt_qkv, adapt_merger, replace_merger):
            for _ in range(2):
                tiny_qwen.encode(tower, one)
            change()
            with cacher.paused():
                expected = tiny_qwen.encode(tower, one)
            for turn in range(2):  # the second one is cached
                got = tiny_qwen.encode(tower, one)
                for ours, want in zip(got, expected, strict=True):
                    torch.testing.assert_close(ours, want, **CLOSE)
                assert (cacher.last_frames[0].kind == "dense") == (turn == 0)


@pytest.mark.parametrize("policy", POLICIES)
def test_forwards_that_others_put_on_linear_layers_count_and_stay(policy):
    tower, pictures = make_tower("siglip"), noisy_walk(3)
    replace_forward(tower)
    expected = encode(tower, pictures[:1])
    cacher = stc_video.attach_cacher(tower, policy)
    torch.testing.assert_close(encode(tower, pictures[:1]), expected, **CLOSE)
    linear = attention_of(tower).q_proj
    before = linear.forward
    linear.forward = theirs = lambda x: before(x) + 1.0
    assert_next_frame_is_fresh(cacher, tower, pictures[1], "a module's forward was replaced")
    replace_mlp(tower)  # all is installed anew
    assert_next_frame_is_fresh(cacher, tower, pictures[2])
    expected = stock(cacher, tower, pictures[0])
    cacher.detach()
    assert linear.forward is theirs
    assert torch.equal(last_hidden(tower, pictures[0]), expected)


def test_a_tower_that_merges_tokens_follows_adapters_and_refuses_other_blocks():
    tower = make_tower("siglip")
    adapted = make_tower("siglip")
    adapt(adapted, ("q_proj", "k_proj"))
    stc_video.attach_tome(adapted, r=2)
    tome = stc_video.attach_tome(tower, r=2)
    adapt(tower, ("q_proj", "k_proj"))
    with torch.no_grad():
        expected = adapted(frame(0)).last_hidden_state
        torch.testing.assert_close(tower(frame(0)).last_hidden_state, expected, atol=0, rtol=0)
        replace_middle_block(tower)
        with pytest.raises(RuntimeError, match="blocks were replaced or taken out since"):
            tower(frame(0))
    tome.restore()


def test_attention_of_an_adapter_is_captured():
    tower = make_tower("siglip")
    with stc_video.capture_attention(tower) as capture, torch.no_grad():
        adapt(tower, ("q_proj", "k_proj"))
        tower(frame(0))
        got = capture.take()
    with stc_video.capture_attention(tower) as capture, torch.no_grad():
        tower(frame(0))
        expected = capture.take()
    assert torch.equal(got.query, expected.query)
    assert torch.equal(got.key, expected.key)
