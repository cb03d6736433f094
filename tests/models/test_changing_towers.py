# SPDX-License-Identifier: Apache-2.0
"""Weights and modules that change while a cacher is attached, and copies of such a tower."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import types

import pytest
import torch
from tiny_towers import encode, frame, last_hidden, layers_of, make_tower, noisy_walk
from torch import nn

import stc_video
from stc_video import AttachError, CacheConfig, UnsupportedModelError
from stc_video.cacher import weight_watch

tiny_qwen = pytest.importorskip("tiny_qwen", exc_type=ImportError)  # transformers from 4.57 on

POLICIES = ["motion", "stc"]


@pytest.fixture(autouse=True)
def _large(monkeypatch):
    """The towers here are tiny; most tests look at them as at large ones, in every call."""
    monkeypatch.setattr(weight_watch, "LARGE_BYTES", 0)


CLOSE = {"atol": 3e-5, "rtol": 1e-5}


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter that can be switched off, as peft's are."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.in_features, self.out_features = base.in_features, base.out_features
        generator = torch.Generator().manual_seed(3)
        self.down = nn.Parameter(0.3 * torch.randn(2, base.in_features, generator=generator))
        self.up = nn.Parameter(0.3 * torch.randn(base.out_features, 2, generator=generator))
        self.disabled = False
        self.scaling = {"default": 1.0}

    def forward(self, x):
        base = self.base_layer(x)
        if self.disabled:
            return base
        return base + self.scaling["default"] * (x @ self.down.T @ self.up.T)

    def merge(self):
        self.base_layer.weight.data += self.up.data @ self.down.data
        self.disabled = True


def noise(tensor, seed=1):
    return 0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))


def attention_of(tower, number=1):
    return layers_of(tower)[number].self_attn


def add_to_data(tower):
    layers_of(tower)[2].mlp.fc1.weight.data += noise(layers_of(tower)[2].mlp.fc1.weight)


def add_to_a_bias(tower):
    layers_of(tower)[2].mlp.fc2.bias.data += 0.5


def add_to_a_norm(tower):
    layers_of(tower)[1].layer_norm2.weight.data[:] *= 1.2


def set_data(tower):
    weight = attention_of(tower).out_proj.weight
    weight.data = weight.data + noise(weight)


def in_place(tower):
    with torch.no_grad():
        for parameter in layers_of(tower)[3].parameters():
            parameter.mul_(1.1)


def copy_to_data(tower):
    weight = attention_of(tower).k_proj.weight
    weight.data.copy_(weight.data + noise(weight))


def load(tower, **options):
    tower.load_state_dict(
        {name: value + noise(value) for name, value in tower.state_dict().items()}, **options
    )


def assign(tower):
    load(tower, assign=True)


def new_parameter(tower):
    linear = layers_of(tower)[0].mlp.fc1
    linear.weight = nn.Parameter(linear.weight.detach() + noise(linear.weight))


def optimizer_step(tower):
    optimizer = torch.optim.SGD(tower.parameters(), lr=0.05)
    for parameter in tower.parameters():
        parameter.grad = noise(parameter)
    optimizer.step()


def through_half(tower):
    tower.to(torch.bfloat16).float()


def replace_linear(tower):
    other = nn.Linear(48, 48)
    attention_of(tower).v_proj = other


def adapt(tower, names=("q_proj", "v_proj")):
    for layer in layers_of(tower):
        for name in names:
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))


def replace_mlp(tower):
    layers_of(tower)[1].mlp = copy.deepcopy(layers_of(tower)[3].mlp)


def replace_norm(tower):
    layers_of(tower)[0].layer_norm1 = nn.LayerNorm(48)


def replace_first_block(tower):
    layers_of(tower)[0] = copy.deepcopy(layers_of(tower)[2])


def replace_middle_block(tower):
    layers_of(tower)[2] = copy.deepcopy(layers_of(tower)[0])


def cut_last_block(tower):
    del layers_of(tower)[-1]


def replace_forward(tower):
    linear = layers_of(tower)[1].mlp.fc2
    before = linear.forward
    linear.forward = lambda x: 1.5 * before(x)


def hook(tower):
    layers_of(tower)[1].mlp.register_forward_hook(lambda _m, _i, output: 1.5 * output)


CHANGES = [
    add_to_data, set_data, in_place, copy_to_data, load, assign,
    new_parameter, optimizer_step, through_half, replace_linear, adapt, replace_mlp, replace_norm,
    replace_first_block, replace_middle_block, cut_last_block, replace_forward, hook,
]  # fmt: skip


def stock(cacher, tower, picture):
    with cacher.paused():
        return last_hidden(tower, picture)


def assert_next_frame_is_fresh(cacher, tower, picture, reason=""):
    """The next frame is encoded densely, gives a reason, and is what the tower itself gives."""
    before = cacher.stats()
    got = last_hidden(tower, picture)
    torch.testing.assert_close(got, stock(cacher, tower, picture), **CLOSE)
    [record] = cacher.last_frames
    assert record.kind == "dense"
    assert record.reason.startswith("the tower changed: " + reason), record.reason
    after = cacher.stats()
    assert (after.resets, after.frames) == (before.resets + 1, before.frames + 1)
    last_hidden(tower, picture)
    assert cacher.last_frames[0].kind != "dense" or cacher.config.policy == "stc"


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


def _saved(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _saved,
}


class TestCopies:
    """A copy of a patched tower is a stock tower; the original stays as it was."""

    @pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
    @pytest.mark.parametrize("make", ["motion", "stc", "tome", "capture"])
    def test_a_copy_is_stock(self, make, way):
        tower, pictures = make_tower("siglip"), noisy_walk(3)
        expected = encode(make_tower("siglip"), pictures)
        handle = {
            "motion": lambda: stc_video.attach_cacher(tower),
            "stc": lambda: stc_video.attach_cacher(tower, "stc"),
            "tome": lambda: stc_video.attach_tome(tower, r=2),
            "capture": lambda: stc_video.capture_attention(tower),
        }[make]()
        with torch.no_grad():
            tower(pictures[0])
            seen = handle.last_frames if make in POLICIES else None
            twin = way(tower)
            assert isinstance(twin, type(tower))
            for got, want in zip(encode(twin, pictures), expected, strict=True):
                assert torch.equal(got, want)
            if make in POLICIES:
                assert handle.last_frames is seen, "the copy's frames are none of this cacher's"
                tower(pictures[0])
                assert handle.stats().frames == 2
                assert handle.stats().cached + handle.stats().unchanged == 1
        assert twin.state_dict().keys() == tower.state_dict().keys()
        other = stc_video.attach_cacher(twin)
        encode(twin, pictures)
        assert other.stats().frames == 3
        other.detach()
        for got, want in zip(encode(twin, pictures), expected, strict=True):
            assert torch.equal(got, want)

    @pytest.mark.parametrize("name", tiny_qwen.TOWERS)
    def test_a_copy_of_a_tower_of_packed_frames_is_stock(self, name):
        tower = tiny_qwen.make_tower(name)
        one = tiny_qwen.video(tower, 1)[0]
        expected = tiny_qwen.encode(tower, one)
        cacher = stc_video.attach_cacher(tower)
        tiny_qwen.encode(tower, one)
        for way in WAYS.values():
            twin = way(tower)
            for _ in range(2):
                for got, want in zip(tiny_qwen.encode(twin, one), expected, strict=True):
                    assert torch.equal(got, want)
        tiny_qwen.encode(tower, one)
        assert (cacher.stats().frames, cacher.stats().unchanged) == (2, 1)

    def test_a_pickled_tower_needs_nothing_of_this_package(self):
        tower = make_tower("siglip")
        stc_video.attach_cacher(tower)
        stc_video.capture_attention(tower, layer=1)
        tower(frame(0))
        strings = [arg for _, arg, _ in pickletools.genops(pickle.dumps(tower))]
        assert "transformers.models.siglip.modeling_siglip" in strings
        assert not any("stc" in string for string in strings if isinstance(string, str))

    def test_the_weights_alone_load_into_a_stock_tower(self):
        tower = make_tower("siglip")
        stc_video.attach_cacher(tower)
        file = io.BytesIO()
        torch.save(tower.state_dict(), file)
        file.seek(0)
        assert not make_tower("siglip").load_state_dict(torch.load(file)).missing_keys

    def test_a_copy_of_a_patched_forward_keeps_what_was_there_before(self):
        tower = make_tower("siglip")
        layer = layers_of(tower)[1]
        layer.forward = types.MethodType(_louder, layer)
        expected = last_hidden(tower, frame(0))
        stc_video.attach_cacher(tower)
        twin = copy.deepcopy(tower)  # nor does a stock tower with such a method pickle
        assert torch.equal(last_hidden(twin, frame(0)), expected)
        assert layers_of(twin)[1].forward.__self__ is layers_of(twin)[1]

    def test_a_cacher_itself_refuses(self):
        cacher = stc_video.attach_cacher(make_tower("siglip"))
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="belongs to one tower"):
                way(cacher)


def _louder(layer, hidden_states, *args, **kwargs):
    return type(layer).forward(layer, 1.5 * hidden_states, *args, **kwargs)


class TestSmallThings:
    def test_settings_by_keyword(self):
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

    def test_totals_outlive_detach(self):
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

    def test_totals_of_packed_frames_outlive_detach(self):
        tower = tiny_qwen.make_tower("qwen2-vl")
        cacher = stc_video.attach_cacher(tower)
        tiny_qwen.encode(tower, tiny_qwen.video(tower, 1)[0])
        cacher.detach()
        assert (cacher.stats().frames, cacher.stats().state_bytes) == (1, 0)

    def test_a_string_is_the_name_of_one_stream(self):
        tower = make_tower("siglip")
        cacher = stc_video.attach_cacher(tower)
        with cacher.streams("cam-0"):
            encode(tower, noisy_walk(2))
        assert list(cacher.stats().streams) == ["cam-0"]
        with pytest.raises(ValueError, match="non-empty names"), cacher.streams(""):
            pass
