# SPDX-License-Identifier: Apache-2.0
"""Steps of a block in one kernel: where it may be, and that it is the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from counted import count, pretended_gpu
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPMLP
from transformers.models.siglip.modeling_siglip import SiglipMLP

from stc_video.towers import fused
from stc_video.towers.fused import add_and_normalise, feed_forward, take_and_normalise

WIDTH = 48


def rows(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, branch = torch.randn((2, 3, 7, WIDTH), generator=generator).to(dtype)
    return x, branch


def norm(dtype: torch.dtype = torch.float32) -> nn.LayerNorm:
    made = nn.LayerNorm(WIDTH, eps=1e-6)
    with torch.no_grad():
        made.weight.normal_()
        made.bias.normal_()
    return made.to(dtype)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """One kernel on a CPU, too, which has it as well."""
    monkeypatch.setattr(fused, "_DEVICES", frozenset({"cpu", "cuda"}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.inference_mode()
def test_one_kernel_gives_what_two_give(everywhere, dtype):
    (x, branch), module = rows(dtype), norm(dtype)
    total, normed = add_and_normalise(x, branch, module)
    assert torch.equal(total, x + branch)
    expected = module.float()(total.float()).to(dtype)
    torch.testing.assert_close(normed, expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def launched(module: nn.Module | None, **changes: object) -> list[str]:
    """Operators that are launched on a GPU."""
    x = torch.empty(3, 7, WIDTH, device="meta", **changes)
    module = None if module is None else module.to("meta")
    with pretended_gpu():
        return [
            call.op for call in count(lambda: add_and_normalise(x, torch.empty_like(x), module))
        ]


def test_on_a_gpu_it_is_one_launch():
    assert launched(norm()) == ["add_layer_norm"]
    assert launched(None) == ["add"]


class OwnNorm(nn.LayerNorm):
    pass


def hooked() -> nn.Module:
    made = norm()
    made.register_forward_hook(lambda *_: None)
    return made


def with_own_forward() -> nn.Module:
    made = norm()
    made.forward = nn.LayerNorm.forward.__get__(made)
    return made


@pytest.mark.parametrize(
    "module",
    [OwnNorm(WIDTH), hooked(), with_own_forward(), nn.LayerNorm(WIDTH, elementwise_affine=False)],
    ids=["subclass", "hook", "forward", "no weight"],
)
def test_what_is_no_plain_norm_is_called_as_it_is(module):
    assert launched(module) == ["add", "layer_norm"]


def test_an_identity_or_another_dtype_is_called_as_it_is():
    assert launched(nn.Identity()) == ["add"]
    assert launched(norm(torch.float64), dtype=torch.float64) == ["add", "layer_norm"]


def test_a_cpu_has_its_own_two_and_gradients_flow():
    (x, branch), module = rows(), norm()
    total, normed = add_and_normalise(x.requires_grad_(), branch, module)
    normed.sum().backward()
    assert x.grad is not None
    assert torch.equal(total, x + branch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_rows_are_taken_and_normalised(everywhere, dtype):
    (x, _), module = rows(dtype), norm(dtype)
    indices = torch.tensor([[6, 0], [3, -1], [1, 2]], dtype=torch.int32)
    taken, normed = take_and_normalise(x, indices, module)
    for frame, row in [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]:
        one = x[frame, indices[frame, row]]
        assert torch.equal(taken[frame, row], one)
        expected = module(one)
        torch.testing.assert_close(
            normed[frame, row], expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-6
        )
    every, all_normed = take_and_normalise(x, None, module)
    assert every is x
    assert torch.equal(all_normed, module(x))


def mlp(activation: str, kind: type[nn.Module] = SiglipMLP) -> nn.Module:
    torch.manual_seed(0)
    return kind(SimpleNamespace(hidden_act=activation, hidden_size=WIDTH, intermediate_size=80))


ACTIVATIONS = ["gelu", "gelu_pytorch_tanh", "quick_gelu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@torch.inference_mode()
def test_an_mlp_with_its_bias_and_gelu_in_one_kernel(everywhere, dtype, activation):
    (x, _), module = rows(dtype), mlp(activation).to(dtype)
    expected = module(x)
    assert not torch.equal(feed_forward(module, x), x)
    torch.testing.assert_close(
        feed_forward(module, x), expected, rtol=8 * torch.finfo(dtype).eps,
        atol=8 * torch.finfo(dtype).eps,
    )  # fmt: skip


def launched_by_mlp(module: nn.Module) -> list[str]:
    x = torch.empty(3, 7, WIDTH, device="meta")
    with pretended_gpu():
        return [call.op for call in count(lambda: feed_forward(module, x))]


class OwnMlp(SiglipMLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def quantised() -> nn.Module:
    module = mlp("gelu").to("meta")
    module.fc1.weight.__class__ = type("QuantisedWeight", (nn.Parameter,), {})
    return module


def hooked_at(path: str) -> nn.Module:
    module = mlp("gelu").to("meta")
    module.get_submodule(path).register_forward_hook(lambda *_: None)
    return module


def test_on_a_gpu_an_mlp_is_three_launches():
    for activation in ACTIVATIONS:
        assert launched_by_mlp(mlp(activation, CLIPMLP).to("meta")) == [
            "linear",
            "bias_gelu",
            "linear",
        ]


@pytest.mark.parametrize(
    "module",
    [OwnMlp(mlp("gelu").config).to("meta"), quantised(), hooked_at(""), hooked_at("fc1"),
     hooked_at("activation_fn")],
    ids=["subclass", "quantised", "hook", "hook in front", "hook on the activation"],
)  # fmt: skip
def test_what_is_no_plain_mlp_is_called_as_it_is(module):
    assert launched_by_mlp(module) == ["linear", "gelu", "linear"]


def test_another_activation_is_called_as_it_is():
    assert "bias_gelu" not in launched_by_mlp(mlp("relu").to("meta"))
