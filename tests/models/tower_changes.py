# SPDX-License-Identifier: Apache-2.0
"""Changes to a tower that a cacher is attached to, and a check that they count at once."""

from __future__ import annotations

import copy

import torch
from tiny_towers import last_hidden, layers_of
from torch import nn

POLICIES = ["motion", "stc"]
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
