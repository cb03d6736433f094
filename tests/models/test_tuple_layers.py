# SPDX-License-Identifier: Apache-2.0
"""Towers outside of transformers whose layers return tuples, as LLaVA-NeXT's own SigLIP does.

The tower here is written anew with that module tree, call signature and eager attention.
"""

from __future__ import annotations

import pytest
import torch
from stc_oracle import MotionOracle, StcOracle, blocks_of
from tiny_towers import layer_inputs, noisy_walk, randomise
from torch import Tensor, nn

import stc_video


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        heads = (-1, self.num_heads, x.shape[2] // self.num_heads)
        q, k, v = (
            p(x).unflatten(2, heads[1:]).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) * heads[2] ** -0.5, dim=-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, 4)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, hidden_states, attention_mask, output_attentions=False):
        x = hidden_states + self.self_attn(self.layer_norm1(hidden_states))
        return (x + self.mlp(self.layer_norm2(x)),)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(48) for _ in range(4)])

    def forward(self, x: Tensor, output_hidden_states: bool = False):
        states = (x,)
        for layer in self.layers:
            x = layer(x, None, output_attentions=False)[0]
            states = (*states, x)
        return x, states if output_hidden_states else None


class VisionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Conv2d(3, 48, 14, 14)
        self.encoder = Encoder()

    def forward(self, pixels: Tensor, output_hidden_states: bool = False):
        return self.encoder(
            self.embeddings(pixels).flatten(2).transpose(1, 2), output_hidden_states
        )


class Wrapper(nn.Module):
    """The outermost module asks for the hidden states by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = VisionModel()

    def forward(self, images: Tensor) -> Tensor:
        return self.vision_tower(images, output_hidden_states=True)[1][-1]


@pytest.mark.parametrize("policy", ["stc", "motion"])
def test_agrees_with_the_oracle_and_detaches(policy):
    tower = randomise(Wrapper())
    pictures = noisy_walk(7)
    inputs = layer_inputs(tower, pictures)
    blocks = blocks_of(tower)
    oracle = StcOracle(blocks, 0.25, 2, 0) if policy == "stc" else MotionOracle(blocks, 0)
    stock = tower(pictures[1])
    cacher = stc_video.attach_cacher(tower, policy, audits=False)
    with torch.no_grad():
        for picture, x in zip(pictures, inputs, strict=True):
            expected = oracle.encode(x)
            expected = expected if policy == "stc" else expected[-1]
            torch.testing.assert_close(tower(picture), expected, atol=1e-4, rtol=0)
    assert cacher.stats().cached >= 3
    cacher.detach()
    assert torch.equal(tower(pictures[1]), stock)
