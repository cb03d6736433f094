# SPDX-License-Identifier: Apache-2.0
"""Blocks whose modules are called as functions: the same bits, and what is on a module runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_every_tower import SUPPORTED, call, layers_of, picture
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from zoo import ENTRIES, Entry

import stc_video
from stc_video.cacher.prepacked_weights import PrepackedWeights

SIGLIP = next(entry for entry in ENTRIES if entry.name == "SiglipVisionModel")
BATCHED = [e for e in SUPPORTED if "rows" not in e.arguments.__name__ and not e.several]


CONFIG = stc_video.CacheConfig(threshold=0.9999, audits=False, redo_from=None)


def frames() -> tuple[Tensor, Tensor]:
    """Two frames, of which a patch differs."""
    first, second = picture(1), picture(1)
    second[..., :8, :8] = picture(2)[..., :8, :8]
    return first, second


def cached_frame(
    tower: nn.Module, entry: Entry, between: Callable[[], Callable[[], None]] | None = None
) -> Tensor:
    """Encode the two frames, with something done between them; returns what the second gives."""
    cacher = stc_video.attach_cacher(tower, CONFIG)
    first, second = frames()
    call(tower, entry, first)
    undo = None if between is None else between()
    try:
        output, *_ = call(tower, entry, second)
    finally:
        if undo is not None:
            undo()
    assert cacher.last_frames[0].kind == "cached"
    cacher.detach()
    return output


@pytest.mark.parametrize("entry", BATCHED, ids=str)
def test_the_same_bits(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    short = cached_frame(entry.build(), entry)
    monkeypatch.setattr(PrepackedWeights, "_in_short", lambda *_: None)
    assert torch.equal(short, cached_frame(entry.build(), entry))


def test_no_module_is_called() -> None:
    tower, called = SIGLIP.build(), []
    cacher = stc_video.attach_cacher(tower, CONFIG)
    call(tower, SIGLIP, frames()[0])
    whole = nn.Module.__call__

    def note(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        called.append(module)
        return whole(module, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "__call__", note)
        call(tower, SIGLIP, frames()[1])
    assert cacher.last_frames[0].kind == "cached"
    inside = [m for layer in layers_of(tower) for m in layer.modules() if m is not layer]
    first = layers_of(tower)[0]
    assert [m for m in called if m in inside] == [first.layer_norm1], "for the changes"


def by_hook(module: nn.Module) -> Callable[[], None]:
    return module.register_forward_hook(lambda _m, _a, output: 1.01 * output).remove


def by_forward(module: nn.Module) -> Callable[[], None]:
    stock = module.forward
    module.forward = lambda x: 1.01 * stock(x)
    return lambda: module.__delattr__("forward")


def of_all(module: nn.Module) -> Callable[[], None]:
    def louder(one: nn.Module, _: Any, output: Any) -> Any:
        return 1.01 * output if one is module else None

    return register_module_forward_hook(louder).remove


def by_class(module: nn.Module) -> Callable[[], None]:
    kind, stock = type(module), type(module).forward
    kind.forward = lambda self, x: 1.01 * stock(self, x)
    return lambda: setattr(kind, "forward", stock)


@pytest.mark.parametrize("name", ["layer_norm2", "mlp"])
def test_what_is_put_on_a_class_runs_in_the_next_frame(name: str) -> None:
    tower = SIGLIP.build()
    module = layers_of(tower)[1].get_submodule(name)
    plain, louder = (cached_frame(tower, SIGLIP, b) for b in (None, lambda: by_class(module)))
    assert not torch.allclose(plain, louder)


@pytest.mark.parametrize("put", [by_hook, by_forward, of_all])
@pytest.mark.parametrize("name", ["layer_norm1", "layer_norm2", "self_attn.out_proj", "mlp.fc1",
                                  "mlp.activation_fn", "mlp"])  # fmt: skip
def test_what_is_put_on_a_module_runs_in_the_next_frame(
    name: str, put: Callable[[nn.Module], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = SIGLIP.build()
    module = layers_of(tower)[1].get_submodule(name)
    plain, louder = (cached_frame(tower, SIGLIP, b) for b in (None, lambda: put(module)))
    assert not torch.allclose(plain, louder)
    monkeypatch.setattr(PrepackedWeights, "_in_short", lambda *_: None)
    assert torch.equal(louder, cached_frame(tower, SIGLIP, lambda: put(module)))
