# SPDX-License-Identifier: Apache-2.0
"""What holds for a cached tower whatever the policy: streams, state, errors, undo."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from tiny_towers import (
    TOWERS,
    frame,
    make_tower,
    siglip2,
    siglip2_arguments,
    walk,
    with_changed_patches,
)

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError

POLICIES = ["motion", "stc"]


def last_hidden(tower, *args, **kwargs):
    with torch.no_grad():
        return tower(*args, **kwargs, output_hidden_states=True).hidden_states[-1]


def encode(tower, pictures):
    return [last_hidden(tower, picture) for picture in pictures]


def contents(tower):
    """Everything an instance of each module holds besides its parameters and submodules."""
    return {name: dict(module.__dict__) for name, module in tower.named_modules()}


# -- attaching and detaching -------------------------------------------------------------------


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
                lambda: transformers.ViTModel(
                    transformers.ViTConfig(
                        hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, image_size=56, patch_size=14,
                    )
                ),
                "ViTModel is not a supported tower",
            ),
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


# -- outputs -----------------------------------------------------------------------------------


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


# -- streams -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
@pytest.mark.parametrize("policy", POLICIES)
def test_interleaved_streams_get_what_each_gets_alone(name, policy):
    tower = make_tower(name)
    videos = {"a": walk(8), "b": [p.flip(-1) for p in walk(8)]}
    alone = {}
    for stream, pictures in videos.items():
        cacher = stc_video.attach_cacher(tower, policy)
        alone[stream] = encode(tower, pictures)
        cacher.detach()
    cacher = stc_video.attach_cacher(tower, policy)
    for number in range(8):
        # Together in one batch, then each by itself, in changing order.
        if number % 3 == 0:
            with cacher.streams(["b", "a"]):
                both = last_hidden(tower, torch.cat([videos["b"][number], videos["a"][number]]))
            got = {"b": both[:1], "a": both[1:]}
        else:
            got = {}
            for stream in ("a", "b") if number % 2 else ("b", "a"):
                with cacher.streams([stream]):
                    got[stream] = last_hidden(tower, videos[stream][number])
        for stream, output in got.items():
            torch.testing.assert_close(output, alone[stream][number], atol=1e-5, rtol=0)
    assert set(cacher.stats().streams) == {"a", "b"}
    assert cacher.stats().streams["a"].frames == 8


def test_a_batch_of_frames_is_the_same_as_one_at_a_time(siglip):
    pictures = walk(8)
    cacher = stc_video.attach_cacher(siglip)
    expected = encode(siglip, pictures)
    cacher.reset()
    batch = last_hidden(siglip, torch.cat(pictures))
    assert len(cacher.last_frames) == 8
    for number, output in enumerate(expected):
        assert torch.equal(batch[number], output[0])


def test_frames_depend_on_no_later_frame(siglip):
    pictures = walk(6)
    cacher = stc_video.attach_cacher(siglip)
    one = last_hidden(siglip, torch.cat(pictures))
    cacher.reset()
    other = last_hidden(siglip, torch.cat([*pictures[:4], frame(50), frame(51)]))
    assert torch.equal(one[:4], other[:4])
    assert not torch.equal(one[4], other[4])


@pytest.mark.parametrize("policy", POLICIES)
def test_reset_forgets_one_stream(siglip, policy):
    cacher = stc_video.attach_cacher(siglip, policy)
    for stream in ("a", "b"):
        with cacher.streams([stream]):
            encode(siglip, walk(2))
    before = cacher.stats().state_bytes
    cacher.reset("a")
    stats = cacher.stats()
    assert stats.streams["a"].state_bytes == 0
    assert stats.state_bytes == before // 2
    assert stats.streams["a"].resets == 1
    with cacher.streams(["a", "b"]):
        last_hidden(siglip, torch.cat([frame(0), frame(0)]))
    first, second = cacher.last_frames
    assert (first.kind, first.reason) == ("dense", "reset")
    assert second.reason != "reset"
    with pytest.raises(KeyError, match="no stream 'c'; known are: a, b"):
        cacher.reset("c")


def test_wrong_use_of_streams_is_refused(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(max_streams=2))
    for names in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(ValueError, match="different, non-empty names"), cacher.streams(names):
            pass
    with (
        cacher.streams(["a", "b"]),
        pytest.raises(ValueError, match=r"one row per stream \(2\), got 3"),
    ):
        siglip(torch.cat([frame(0)] * 3))
    with cacher.streams(["a", "b"]):
        siglip(torch.cat([frame(0)] * 2))
    with (
        cacher.streams(["c"]),
        pytest.raises(ValueError, match="at most 2 streams"),
    ):
        siglip(frame(0))
    cacher.reset("a")
    with cacher.streams(["c"]):
        siglip(frame(0))


# -- state -------------------------------------------------------------------------------------


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


# -- SigLIP2 -----------------------------------------------------------------------------------


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


# -- records -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_stats_add_up(policy):
    tower = make_tower("dinov2")
    cacher = stc_video.attach_cacher(tower, policy)
    records = []
    for picture in walk(9):
        last_hidden(tower, picture)
        records += cacher.last_frames
    stats = cacher.stats()
    assert stats.frames == stats.dense + stats.cached + stats.unchanged == 9
    assert stats.cost == pytest.approx(sum(record.cost for record in records) / 9)
    assert [record.index for record in records] == list(range(9))
    for record in records:
        assert record.encoded.shape == (17,)
        assert 0 <= float(record.encoded.min()) <= float(record.encoded.max()) <= 1 + 1e-6
        if record.kind == "cached":
            assert record.encoded[0] == pytest.approx(1.0), "the class token is always encoded"
            assert record.similarity.shape == (17,)


def test_changed_patches_are_the_ones_encoded(siglip):
    cacher = stc_video.attach_cacher(siglip, CacheConfig(refresh=0.0, buckets=(1 / 8, 1 / 2)))
    last_hidden(siglip, frame(0))
    last_hidden(siglip, with_changed_patches(frame(0), [3, 9]))
    record = cacher.last_frames[0]
    assert record.changed == 2
    assert record.encoded.nonzero().flatten().tolist() == [3, 9]
    assert record.cost == pytest.approx(2 / 16)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "fast"}, "policy must be one of motion, stc, got 'fast'"),
        ({"ratio": 0.0}, "ratio must be above 0 and at most 1, got 0.0"),
        ({"ratio": 1.5}, "ratio must be above 0"),
        ({"interval": 0}, "interval must be a whole number from 1, got 0"),
        ({"interval": 1.5}, "interval must be a whole number"),
        ({"threshold": 2.0}, "threshold must be a cosine between -1 and 1"),
        ({"metric": "queries"}, "metric must be one of keys, values"),
        ({"refresh": -0.1}, "refresh must be between 0 and 1"),
        ({"buckets": ()}, "buckets must be ascending fractions"),
        ({"buckets": (0.5, 0.25)}, "buckets must be ascending fractions"),
        ({"tail_layers": -1}, "tail_layers must be a whole number from 0"),
        ({"max_streams": 0}, "max_streams must be a whole number from 1"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CacheConfig(**settings)


# -- packed weights ----------------------------------------------------------------------------


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
