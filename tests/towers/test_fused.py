# SPDX-License-Identifier: Apache-2.0
"""Adding and normalising in one kernel: where it may be, and that it is the same."""

from __future__ import annotations

import pytest
import torch
from counted import count, pretended_gpu
from torch import Tensor, nn

from stc_video.towers import fused
from stc_video.towers.fused import add_and_normalise

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
