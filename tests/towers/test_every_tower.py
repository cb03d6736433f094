# SPDX-License-Identifier: Apache-2.0
"""Every tower that transformers has: right, or refused and left as it was. No third outcome."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from zoo import ENTRIES, PATCH, SIZE, SMALL, Entry, tensors

import stc_video
from stc_video import CacheConfig, UnsupportedModelError
from stc_video.towers import families

SUPPORTED = [entry for entry in ENTRIES if not entry.refused]
#: what decides nothing by itself: changed tokens are encoded, no others
MOTION = CacheConfig(
    threshold=0.99, refresh=0.0, propagate=0.0, redo_from=None, tail_layers=0, buckets=(0.25, 0.5)
)
REFUSED = [entry for entry in ENTRIES if entry.refused]


def picture(seed: int) -> Tensor:
    return torch.randn((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))


def call(tower: nn.Module, entry: Entry, *pictures: Tensor) -> list[Tensor]:
    """All floating-point tensors that the tower returns for some pictures."""
    with torch.no_grad():
        output = tower(**entry.arguments(torch.cat(pictures)))
    return [tensor.clone() for tensor in tensors(output) if tensor.is_floating_point()]


def assert_same(ours: list[Tensor], stock: list[Tensor]) -> None:
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in stock]
    for mine, its in zip(ours, stock, strict=True):
        assert type(mine) is Tensor
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5 * float(its.abs().max()))


def contents(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What each module has in its ``__dict__``, with a copy of its hooks and the like."""
    return {
        name: {
            key: dict(value) if isinstance(value, dict) else value
            for key, value in module.__dict__.items()
        }
        for name, module in model.named_modules()
    }


class Oracle:
    """Stock blocks in which only some rows of a second frame are encoded anew."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.encoded: Tensor | None = None
        self._inputs: dict[nn.Module, Tensor] = {}
        self._outputs: dict[nn.Module, Tensor] = {}
        layers[0].register_forward_pre_hook(self._first, with_kwargs=True)
        for layer in layers:
            layer.register_forward_hook(self._after, prepend=True)

    def _first(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if args:
            return (self._mixed(self._inputs, layer, args[0]), *args[1:]), named
        name = "hidden_states"
        return args, named | {name: self._mixed(self._inputs, layer, named[name])}

    def _after(self, layer: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (self._mixed(self._outputs, layer, output[0]), *output[1:])
        return self._mixed(self._outputs, layer, output)

    def _mixed(self, kept: dict[nn.Module, Tensor], layer: nn.Module, new: Tensor) -> Tensor:
        if self.encoded is not None:
            new = kept[layer].index_copy(-2, self.encoded, new.index_select(-2, self.encoded))
        kept[layer] = new.clone()
        return new


def layers_of(tower: nn.Module) -> Any:
    """The list of blocks of a tower."""
    kinds = nn.ModuleList, nn.Sequential
    lists = (module for module in tower.modules() if isinstance(module, kinds))
    return next(
        module
        for module in lists
        if len(module) == SMALL["num_hidden_layers"]
        and any("att" in name for name, _ in module[0].named_children())
    )


@pytest.mark.parametrize("entry", SUPPORTED, ids=str)
@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_a_supported_tower_is_right(entry: Entry, policy: str) -> None:
    tower = entry.build()
    first, other = picture(1), picture(2)
    stock = {n: call(tower, entry, p) for n, p in (("first", first), ("other", other))}
    # With all tokens selected, what STC encodes in between is a dense frame, too.
    settings = {"ratio": 1.0} if policy == "stc" else {}
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy=policy, **settings))
    assert_same(call(tower, entry, first), stock["first"])
    assert_same(call(tower, entry, first), stock["first"])
    assert_same(call(tower, entry, other), stock["other"])
    assert_same(call(tower, entry, other), stock["other"])
    if policy == "motion":
        kinds = cacher.stats()
        assert (kinds.dense, kinds.unchanged + kinds.cached) == (2, 2)


@pytest.mark.parametrize("entry", SUPPORTED, ids=str)
def test_a_frame_that_changed_in_part_is_what_stock_blocks_give(entry: Entry) -> None:
    """What is not encoded keeps the input, and so the key and the value, of the frame before."""
    first = picture(1)
    changed = first.clone()
    changed[..., :PATCH, :PATCH] = picture(2)[..., :PATCH, :PATCH]
    tower = entry.build()
    cacher = stc_video.attach_cacher(tower, MOTION)
    call(tower, entry, first)
    ours = call(tower, entry, changed)
    frame = cacher.last_frames[0]
    assert frame.kind == "cached"
    assert frame.cost < 1.0
    stock = entry.build()
    oracle = Oracle(layers_of(stock)[: len(cacher._tower.blocks)])
    call(stock, entry, first)
    oracle.encoded = frame.selected[0].long()
    assert_same(ours, call(stock, entry, changed))


@pytest.mark.parametrize("entry", SUPPORTED, ids=str)
@pytest.mark.parametrize("before", ["nothing", "one picture"])
def test_several_pictures_in_a_call(entry: Entry, before: str) -> None:
    tower = entry.build()
    pictures = [picture(seed) for seed in (1, 2, 3)]
    stock = call(tower, entry, *pictures)
    single = call(tower, entry, pictures[0])
    untouched = contents(tower)
    cacher = stc_video.attach_cacher(tower)
    if before == "one picture":
        assert_same(call(tower, entry, pictures[0]), single)
    if not entry.several:
        assert_same(call(tower, entry, *pictures), stock)
        assert cacher.stats().frames == 3 + (before == "one picture")
        return
    with pytest.raises(ValueError, match=entry.several):
        call(tower, entry, *pictures)
    if before == "one picture":
        assert_same(call(tower, entry, pictures[0]), single)
        assert cacher.stats().unchanged == 1, "a refused call costs nothing of the stream"
    cacher.detach()
    assert contents(tower) == untouched


@pytest.mark.parametrize("entry", REFUSED, ids=str)
def test_any_other_tower_is_refused_and_left_as_it_was(entry: Entry) -> None:
    tower = entry.build()
    before, keys = contents(tower), list(tower.state_dict())
    with pytest.raises(UnsupportedModelError, match=entry.refused) as refused:  # noqa: PT012
        stc_video.attach_cacher(tower)
        call(tower, entry, picture(1))
    assert contents(tower) == before
    assert list(tower.state_dict()) == keys
    if "its cacher is off again" in str(refused.value):
        call(tower, entry, picture(1))


def _adding(encoder_class: type) -> type:
    """An encoder that adds the output of its first block to that of its last."""

    class Adding(encoder_class):
        def forward(self, inputs_embeds: Tensor, *_: Any, **__: Any) -> BaseModelOutput:
            states = [inputs_embeds]
            for layer in self.layers:
                output = layer(states[-1], None)
                states.append(output[0] if isinstance(output, tuple) else output)
            return BaseModelOutput(last_hidden_state=states[1] + states[-1])

    return Adding


def test_a_tower_that_uses_inner_outputs_without_saying_so_is_refused() -> None:
    entry = next(entry for entry in SUPPORTED if entry.model == "siglip")
    tower = entry.build()
    layers = layers_of(tower)
    encoder = next(module for module in tower.modules() if layers in module.children())
    encoder.__class__ = _adding(type(encoder))
    before = contents(tower)
    stc_video.attach_cacher(tower)
    with pytest.raises(UnsupportedModelError, match="output of a block in the middle"):
        call(tower, entry, picture(1))
    assert contents(tower) == before


def test_the_table_of_families_says_what_these_tests_show() -> None:
    table = families.TOWER_FAMILIES
    of_model = {model: family for family in table for model in family.models}
    assert len(of_model) == sum(len(family.models) for family in table), "one each"
    # test_timm_towers.py has the towers of timm.
    assert {entry.model for entry in ENTRIES} | {"timm_wrapper"} == set(of_model)
    for entry in ENTRIES:
        family = of_model[entry.model]
        assert family.support == (families.REFUSED if entry.refused else families.EXACT), entry
        assert bool(family.note) >= bool(entry.refused or entry.several), entry
