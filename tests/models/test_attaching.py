# SPDX-License-Identifier: Apache-2.0
"""Putting a cacher on a tower and taking it off."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny_towers import TOWERS, contents, encode, frame, last_hidden, make_tower, noisy_walk, walk

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError

POLICIES = ["motion", "stc"]


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_detach_leaves_the_tower_exactly_as_it_was(name, policy):
    tower = make_tower(name)
    last_hidden(tower, frame(0))  # lets transformers install its own hooks
    before, keys = contents(tower), list(tower.state_dict())
    expected = last_hidden(tower, frame(1))
    cacher = stc_video.attach_cacher(tower, policy)
    assert list(tower.state_dict()) == keys
    encode(tower, walk(3))
    cacher.detach()
    after = contents(tower)
    for module, entries in before.items():
        assert after[module].keys() == entries.keys(), module
        assert all(after[module][key] is entries[key] for key in entries if key == "forward")
        assert len(after[module]["_forward_pre_hooks"]) == 0
    assert torch.equal(last_hidden(tower, frame(1)), expected)


def test_attaching_twice_is_refused_and_changes_nothing(siglip):
    cacher = stc_video.attach_cacher(siglip)
    encode(siglip, walk(2))
    with pytest.raises(AttachError, match="already has a cacher; detach that one first"):
        stc_video.attach_cacher(siglip, "stc")
    encode(siglip, walk(2)[1:])
    assert cacher.stats().frames == 3
    cacher.detach()
    stc_video.attach_cacher(siglip, "stc")


def test_detaching_after_someone_else_patched(siglip):
    cacher = stc_video.attach_cacher(siglip)
    layer = siglip.get_submodule(cacher._tower.path)[1]
    ours = layer.forward
    layer.forward = lambda *args, **kwargs: ours(*args, **kwargs)
    with pytest.raises(AttachError, match=r"layer 1 of SiglipVisionModel.*force=True"):
        cacher.detach()
    last_hidden(siglip, frame(0))
    assert cacher.stats().frames == 1, "a refused detach leaves the cacher working"
    expected = last_hidden(make_tower("siglip"), frame(3))
    cacher.detach(force=True)
    assert torch.equal(last_hidden(siglip, frame(3)), expected)


def test_a_deep_copy_has_no_cacher_of_its_own(siglip):
    cacher = stc_video.attach_cacher(siglip)
    twin = copy.deepcopy(siglip)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    for block in cacher._tower.blocks:
        assert block.layer is not twin.get_submodule(cacher._tower.path)[0]
    stock = make_tower("siglip")
    stock.load_state_dict(twin.state_dict())
    layer = twin.get_submodule(cacher._tower.path)[0]
    x = torch.rand(1, 16, 48)
    torch.testing.assert_close(
        layer(x, None), stock.get_submodule(cacher._tower.path)[0](x, None), atol=0, rtol=0
    )


def test_accelerate_hooks_stay_in_charge(siglip):
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    expected = last_hidden(siglip, frame(0))
    for module in siglip.modules():
        hooks.add_hook_to_module(module, hooks.AlignDevicesHook(execution_device="cpu"))
    before = contents(siglip)
    cacher = stc_video.attach_cacher(siglip)
    torch.testing.assert_close(last_hidden(siglip, frame(0)), expected)
    last_hidden(siglip, frame(0))
    assert cacher.stats().unchanged == 1
    cacher.detach()
    after = contents(siglip)
    for module, entries in before.items():
        for key in ("forward", "_old_forward"):
            assert after[module].get(key) is entries.get(key)
    assert torch.equal(last_hidden(siglip, frame(0)), expected)


class TestUnsupportedModels:
    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: torch.nn.Linear(3, 3), "Linear is not a supported tower"),
            (
                lambda: transformers.Qwen2Model(
                    transformers.Qwen2Config(
                        hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, vocab_size=16,
                    )
                ),
                "Qwen2Model is not a supported tower",
            ),
        ],
    )  # fmt: skip
    def test_they_are_named_and_left_untouched(self, make, message):
        model = make()
        before = contents(model)
        with pytest.raises(UnsupportedModelError, match=message) as caught:
            stc_video.attach_cacher(model)
        assert "supported are" in str(caught.value)
        assert contents(model) == before

    def test_a_model_with_two_towers_must_be_taken_apart(self):
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
                 "num_attention_heads": 4}  # fmt: skip
        config = transformers.SiglipConfig(
            text_config=small | {"vocab_size": 16, "projection_size": 32},
            vision_config=small | {"image_size": 56, "patch_size": 14},
        )
        model = transformers.SiglipModel(config)
        with pytest.raises(UnsupportedModelError, match=r"2 stacks.*model\.vision_model"):
            stc_video.attach_cacher(model)
        stc_video.attach_cacher(model.vision_model)

    def test_no_module_at_all(self):
        with pytest.raises(UnsupportedModelError, match=r"must be a torch\.nn\.Module, got str"):
            stc_video.attach_cacher("siglip")


def test_settings_by_keyword():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower, quality=0.99, max_streams=2)
    assert cacher.config == CacheConfig(quality=0.99, max_streams=2)
    cacher.detach()
    cacher = stc_video.attach_cacher(tower, "stc", ratio=0.5)
    assert cacher.config == CacheConfig("stc", ratio=0.5)
    cacher.detach()
    with pytest.raises(ValueError, match=r"no setting qualty; settings are ratio, interval"):
        stc_video.attach_cacher(tower, qualty=0.99)
    with pytest.raises(ValueError, match=r"got a CacheConfig and quality"):
        stc_video.attach_cacher(tower, CacheConfig(), quality=0.99)
    with pytest.raises(ValueError, match=r"quality must be a cosine"):
        stc_video.attach_cacher(tower, quality=2)
    stc_video.attach_cacher(tower)  # nothing was left on it


def test_totals_outlive_detach():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    with cacher.streams("cam-0"):
        encode(tower, noisy_walk(4))
    before = cacher.stats()
    cacher.detach()
    after = cacher.stats()
    assert (after.frames, after.dense, after.cached, after.cost) == (
        before.frames, before.dense, before.cached, before.cost,
    )  # fmt: skip
    assert after.streams["cam-0"].frames == 4
    assert (after.state_bytes, after.packed_bytes) == (0, 0)


def test_totals_of_packed_frames_outlive_detach():
    tiny_qwen = pytest.importorskip("tiny_qwen", exc_type=ImportError)  # transformers from 4.57
    tower = tiny_qwen.make_tower("qwen2-vl")
    cacher = stc_video.attach_cacher(tower)
    tiny_qwen.encode(tower, tiny_qwen.video(tower, 1)[0])
    cacher.detach()
    assert (cacher.stats().frames, cacher.stats().state_bytes) == (1, 0)


def test_a_string_is_the_name_of_one_stream():
    tower = make_tower("siglip")
    cacher = stc_video.attach_cacher(tower)
    with cacher.streams("cam-0"):
        encode(tower, noisy_walk(2))
    assert list(cacher.stats().streams) == ["cam-0"]
    with pytest.raises(ValueError, match="non-empty names"), cacher.streams(""):
        pass
