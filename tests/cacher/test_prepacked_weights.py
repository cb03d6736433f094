# SPDX-License-Identifier: Apache-2.0
"""The second copy of the weights."""

from __future__ import annotations

import pytest
import torch
from tiny_towers import encode, last_hidden, layers_of, make_tower, noisy_walk, walk

import stc_video
from stc_video import CacheConfig
from stc_video.cacher import prepacked_weights

PLAIN = CacheConfig(pack_weights=False)
WEIGHTS = 4 * (4 * 48 * 48 + 2 * 48 * 96)  # of the tiny tower's four layers
QKV = 4 * 3 * (48 * 48 + 48)  # weights and biases

# 16-bit towers are multiplied in float32 here and in 16 bits there.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.06, torch.float16: 0.01}


@pytest.fixture
def without_packing(monkeypatch):
    """As on a GPU: no packed layout, so that query, key and value are one plain matrix."""
    monkeypatch.setattr(prepacked_weights, "_has_packed_product", lambda: False)


def encode_with(tower, pictures, config):
    cacher = stc_video.attach_cacher(tower, config)
    tokens = encode(tower, pictures)
    nbytes = cacher.stats().packed_bytes
    cacher.detach()
    return tokens, nbytes


def assert_alike(got, expected, dtype=torch.float32):
    for ours, want in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def scale_weights(tower):
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.mul_(0.9)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_prepacked_weights_are_counted_follow_changes_and_go(dtype):
    tower = make_tower("siglip").to(dtype)
    pictures = [picture.to(dtype) for picture in walk(4)]
    expected, nbytes = encode_with(tower, pictures, PLAIN)
    assert nbytes == 0
    cacher = stc_video.attach_cacher(tower)
    assert_alike(encode(tower, pictures), expected, dtype)
    assert cacher.stats().packed_bytes == WEIGHTS * prepacked_weights._multiplied_in(dtype).itemsize
    # Weights that change in place must not leave a stale copy in use.
    scale_weights(tower)
    cacher.reset()
    with cacher.paused():
        stock = last_hidden(tower, pictures[0])
    assert_alike([last_hidden(tower, pictures[0])], [stock], dtype)
    cacher.detach()
    assert not any("forward" in module.__dict__ for module in tower.modules())


@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_each_weight_is_copied_once(policy):
    tower = make_tower("siglip")
    _, nbytes = encode_with(tower, noisy_walk(6), CacheConfig(policy=policy))
    assert nbytes == 4 * WEIGHTS


def test_weights_that_were_made_in_inference_mode_are_copied_too():
    with torch.inference_mode():
        tower = make_tower("siglip")
    pictures = noisy_walk(6)
    packed, nbytes = encode_with(tower, pictures, CacheConfig())
    plain, _ = encode_with(tower, pictures, PLAIN)
    assert nbytes == 4 * WEIGHTS
    assert_alike(packed, plain)
    cacher = stc_video.attach_cacher(tower)
    encode(tower, pictures[:2])
    with torch.inference_mode():
        layers_of(tower)[1].mlp.fc1.weight *= 1.5
    cacher.refresh()
    with cacher.paused():
        stock = last_hidden(tower, pictures[1])
    assert_alike([last_hidden(tower, pictures[1])], [stock])


@pytest.mark.parametrize("policy", ["motion", "stc"])
@pytest.mark.parametrize("name", ["siglip", "dinov2", "dinov2-registers", "clip"])
def test_one_product_gives_what_three_give(name, policy, without_packing):
    tower, pictures = make_tower(name), noisy_walk(6)
    expected, _ = encode_with(tower, pictures, CacheConfig(policy=policy, pack_weights=False))
    got, nbytes = encode_with(tower, pictures, CacheConfig(policy=policy))
    assert_alike(got, expected)
    assert nbytes == 4 * QKV


def test_one_product_follows_changes_at_the_same_address(without_packing):
    tower, pictures = make_tower("siglip"), noisy_walk(3)
    cacher = stc_video.attach_cacher(tower)
    encode(tower, pictures)
    [fused, *_] = cacher._weights._fused.values()
    address = fused.weight.data_ptr()
    scale_weights(tower)
    cacher.reset()
    with cacher.paused():
        stock = encode(tower, pictures[:1])
    assert_alike(encode(tower, pictures[:1]), stock)
    assert fused.weight.data_ptr() == address  # which a recorded pass reads


def test_projections_with_a_hook_of_their_own_are_called():
    tower, pictures = make_tower("siglip"), noisy_walk(4)
    seen = []
    attention = layers_of(tower)[1].self_attn
    hook = attention.k_proj.register_forward_hook(
        lambda module, inputs, output: seen.append(1) or 2 * output
    )
    expected, _ = encode_with(tower, pictures, PLAIN)
    calls = len(seen)
    got, _ = encode_with(tower, pictures, CacheConfig())
    assert len(seen) == 2 * calls > 0
    assert_alike(got, expected)
    hook.remove()
    without, _ = encode_with(tower, pictures, CacheConfig())
    assert not torch.allclose(without[0], got[0], atol=1e-3)
    assert len(seen) == 2 * calls


def test_projections_of_another_kind_are_called():
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    tower, pictures = make_tower("siglip"), noisy_walk(4)
    attention = layers_of(tower)[0].self_attn
    stock = attention.q_proj
    attention.q_proj = Doubled(48, 48)
    attention.q_proj.load_state_dict(stock.state_dict())
    expected, _ = encode_with(tower, pictures, PLAIN)
    got, _ = encode_with(tower, pictures, CacheConfig())
    assert_alike(got, expected)


def test_weights_of_another_kind_multiply_in_their_own_way():
    class Doubled(torch.Tensor):  # as a quantised weight is a class of its own
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is not torch.nn.functional.linear:
                return super().__torch_function__(function, types, args, kwargs or {})
            with torch._C.DisableTorchFunctionSubclass():
                return 2 * function(*args, **(kwargs or {}))

    tower, pictures = make_tower("siglip"), noisy_walk(4)
    before, _ = encode_with(tower, pictures, PLAIN)
    linear = layers_of(tower)[0].self_attn.k_proj
    linear.weight = torch.nn.Parameter(linear.weight.detach().as_subclass(Doubled))
    expected, _ = encode_with(tower, pictures, PLAIN)
    got, _ = encode_with(tower, pictures, CacheConfig())
    assert_alike(got, expected)
    assert not torch.allclose(torch.Tensor(got[0]), torch.Tensor(before[0]), atol=1e-3)
