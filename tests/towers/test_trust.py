# SPDX-License-Identifier: Apache-2.0
"""Nothing is trusted unseen: differences that are small, hidden, or come later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers.modeling_utils
from test_every_tower import SUPPORTED, assert_same, call, contents, layers_of, picture
from torch import Tensor, nn
from zoo import ENTRIES, SIZE, Entry, siglip2_rows

import stc_video
from stc_video import CacheConfig, UnsupportedModelError
from stc_video.towers import layouts

BY_NAME = {entry.name: entry for entry in ENTRIES}
SIGLIP = BY_NAME["SiglipVisionModel"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
BATCHED = [e for e in SUPPORTED if "rows" not in e.arguments.__name__ and not e.several]


def initialised(entry: Entry) -> nn.Module:
    """A tower with the small weights that transformers starts training with."""
    tower = entry.build()
    torch.manual_seed(0)
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return tower


def in_dtype(entry: Entry, dtype: torch.dtype) -> Callable[[Tensor], dict[str, Any]]:
    return lambda frames: {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in entry.arguments(frames).items()
    }


def run(tower: nn.Module, *pictures: Tensor, entry: Entry = SIGLIP) -> list[Tensor]:
    return call(tower, entry, *pictures)


def attention_of(tower: nn.Module) -> nn.Module:
    return layers_of(tower)[1].self_attn


@pytest.fixture
def wrong_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that say of every head that it is rotated in two parts."""
    wrong = tuple(replace(row, rotary_axes=3 - row.rotary_axes) for row in layouts.LAYOUTS)
    monkeypatch.setattr(layouts, "LAYOUTS", wrong)


#: towers that are not what their rows say
MISREAD = ["DINOv3ViTModel", "MLCDVisionModel", "Gemma4VisionModel", "Phi4MultimodalVisionModel"]


@pytest.mark.usefixtures("wrong_rows")
class TestSmallDifferences:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("name", MISREAD)
    def test_weights_as_initialised_hide_nothing(self, name: str, dtype: torch.dtype) -> None:
        """All logits are near zero, so that neither positions nor much else counts."""
        entry = next(e for e in ENTRIES if e.name == name)
        tower = initialised(entry).to(dtype)
        stc_video.attach_cacher(tower)
        with torch.no_grad(), pytest.raises(UnsupportedModelError, match="block 0"):
            tower(**in_dtype(entry, dtype)(picture(1)))

    @pytest.mark.parametrize("name", MISREAD)
    def test_a_frame_of_equal_tokens_hides_nothing(self, name: str) -> None:
        entry = next(e for e in ENTRIES if e.name == name)
        tower = entry.build()
        with torch.no_grad():
            for parameter_name, parameter in tower.named_parameters():
                if "position" in parameter_name:
                    parameter.zero_()
        stc_video.attach_cacher(tower)
        black = torch.zeros((1, 3, SIZE, SIZE))
        with pytest.raises(UnsupportedModelError, match="its output differs"):
            run(tower, black, entry=entry)


class TestRounding:
    @pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
    @pytest.mark.parametrize("entry", SUPPORTED, ids=str)
    def test_rounding_is_no_difference(self, entry: Entry, dtype: torch.dtype) -> None:
        tower = entry.build().to(dtype)
        cacher = stc_video.attach_cacher(tower)
        with torch.no_grad():
            for _ in range(2):
                tower(**in_dtype(entry, dtype)(picture(1)))
        assert cacher.stats().unchanged == 1

    def test_nor_is_autocast(self) -> None:
        tower = SIGLIP.build()
        cacher = stc_video.attach_cacher(tower)
        with torch.autocast("cpu", torch.bfloat16):
            run(tower, picture(1))
        assert cacher.stats().dense == 1

    def test_an_outlier_among_the_channels_hides_nothing(self) -> None:
        """A channel thousands of times larger than the others, as large towers have."""
        tower = BY_NAME["Phi4MultimodalVisionModel"].build()
        with torch.no_grad():
            layers_of(tower)[0].mlp.fc2.bias[3] += 3000.0
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match=r"block 0: .*is_causal=True"):
            run(tower, picture(1))

    def test_no_frame_but_nan_is_waited_for(self) -> None:
        entry = BY_NAME["Phi4MultimodalVisionModel"]
        tower = entry.build()
        stc_video.attach_cacher(tower)
        run(tower, picture(1) * torch.nan, entry=entry)
        with pytest.raises(UnsupportedModelError, match="is_causal=True"):
            run(tower, picture(1), entry=entry)


class TestPartsThatAreNotCalled:
    """The attention module is not called, its projections are."""

    def put_on(self, module: nn.Module, what: str) -> Callable[[], None]:
        if what == "a forward hook":
            return module.register_forward_hook(lambda *_: None).remove
        if what == "a forward pre-hook":
            return module.register_forward_pre_hook(lambda *_: None).remove
        module.forward = lambda *args, **kwargs: type(module).forward(module, *args, **kwargs)
        return lambda: module.__dict__.pop("forward")

    @pytest.mark.parametrize("what", ["a forward hook", "a forward pre-hook", "a forward of its"])
    @pytest.mark.parametrize("attach", [stc_video.attach_cacher, stc_video.attach_tome])
    def test_what_is_on_them_is_refused(self, what: str, attach: Callable[..., Any]) -> None:
        tower = SIGLIP.build()
        take_off = self.put_on(attention_of(tower), what)
        before = contents(tower)
        with pytest.raises(UnsupportedModelError, match=rf"block 1.self_attn\) has {what}"):
            attach(tower)
        assert contents(tower) == before
        take_off()
        attach(tower)

    @pytest.mark.parametrize("what", ["a forward hook", "a forward pre-hook", "a forward of its"])
    def test_also_later_and_nothing_is_lost(self, what: str) -> None:
        tower = SIGLIP.build()
        cacher = stc_video.attach_cacher(tower)
        run(tower, picture(1))
        take_off = self.put_on(attention_of(tower), what)
        with pytest.raises(UnsupportedModelError, match=what):
            run(tower, picture(1))
        take_off()
        run(tower, picture(1))
        assert cacher.stats().unchanged == 1

    def test_transformers_own_hooks_are_none(self) -> None:
        tower = SIGLIP.build()
        with torch.no_grad():
            tower(picture(1), output_hidden_states=True)
        stc_video.attach_cacher(tower)
        run(tower, picture(1))

    @pytest.mark.parametrize("attach", [stc_video.attach_cacher, stc_video.attach_tome])
    def test_an_attention_of_somebodys_own(self, attach: Callable[..., Any]) -> None:
        tower = SIGLIP.build()
        with registered("uniform", uniform_attention):
            tower.set_attn_implementation("uniform")
            with pytest.raises(UnsupportedModelError, match="attends by 'uniform'"):
                attach(tower)
            tower.set_attn_implementation("sdpa")
            attach(tower)
            run(tower, picture(1))
            tower.set_attn_implementation("uniform")
            with pytest.raises(UnsupportedModelError, match="attends by 'uniform'"):
                run(tower, picture(1))
            tower.set_attn_implementation("eager")
            run(tower, picture(1))

    def test_an_attention_of_somebodys_own_under_a_known_name(self) -> None:
        tower = SIGLIP.build()
        refusal = pytest.raises(UnsupportedModelError, match="attends by 'sdpa'")
        with registered("sdpa", uniform_attention), refusal:
            stc_video.attach_cacher(tower)


def uniform_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> tuple[Tensor, None]:
    return value.mean(2, keepdim=True).expand_as(query).transpose(1, 2), None


@contextmanager
def registered(name: str, function: Callable[..., Any]) -> Iterator[None]:
    functions = getattr(transformers.modeling_utils, "ALL_ATTENTION_FUNCTIONS", None)
    if not hasattr(functions, "register"):
        pytest.skip(f"transformers {transformers.__version__} has no attention to register")
    before = dict(functions._global_mapping)
    functions.register(name, function)
    try:
        yield
    finally:
        functions._global_mapping.clear()
        functions._global_mapping.update(before)


def _larger(_: nn.Module, __: Any, output: Any) -> Any:
    return (1.5 * output[0], *output[1:]) if isinstance(output, tuple) else 1.5 * output


class TestBetweenBlocks:
    @pytest.mark.parametrize("number", [0, 1])
    def test_a_hook_that_changes_what_a_block_gives(self, number: int) -> None:
        tower = SIGLIP.build()
        before = contents(tower)
        hook = layers_of(tower)[number].register_forward_hook(_larger)
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match=f"block {number + 1} gets something"):
            run(tower, picture(1))
        hook.remove()
        assert contents(tower) == before

    @pytest.mark.parametrize("where", ["after", "in front"])
    def test_also_one_that_comes_later(self, where: str) -> None:
        tower = SIGLIP.build()
        stc_video.attach_cacher(tower)
        run(tower, picture(1))
        layers = layers_of(tower)
        if where == "after":
            layers[0].register_forward_hook(_larger)
        else:
            layers[1].register_forward_pre_hook(lambda _m, args: (1.5 * args[0], *args[1:]))
        with pytest.raises(UnsupportedModelError, match="changed before it reaches block 1"):
            run(tower, picture(2))

    @pytest.mark.parametrize("policy", ["motion", "stc"])
    def test_a_hook_that_looks_sees_what_stock_blocks_give(self, policy: str) -> None:
        tower, seen = SIGLIP.build(), []
        layers_of(tower)[1].register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
        run(tower, picture(1))
        run(tower, picture(2))
        stc_video.attach_cacher(tower, CacheConfig(policy=policy, interval=1))
        run(tower, picture(1))
        run(tower, picture(2))
        assert_same(seen[2:], seen[:2])

    def test_a_tower_that_leaves_blocks_out(self) -> None:
        tower = SIGLIP.build()
        tower.config.num_hidden_layers = 2
        if (out := run(tower, picture(1))) and not _stops_early(tower):
            pytest.skip("this release of transformers calls every block that there is")
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match="only 2 of its 3 blocks are called"):
            run(tower, picture(1))
        assert_same(run(tower, picture(1)), out)

    def test_a_block_in_which_pictures_see_each_other(self) -> None:
        """With one picture a call there is nothing to be seen of it."""
        tower = SIGLIP.build()
        for layer in layers_of(tower):
            layer.__class__ = _mixing(type(layer))
        before = contents(tower)
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match="block 0: its output differs"):
            run(tower, picture(1))
        assert contents(tower) == before

    @pytest.mark.parametrize("token", range(16))
    def test_a_block_that_treats_one_token_otherwise(self, token: int) -> None:
        """Whichever it is, and although an MLP runs for a part of them only."""
        tower = SIGLIP.build()
        layer = layers_of(tower)[1]
        layer.__class__ = _marking(type(layer), token)
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match="block 1: its output differs"):
            run(tower, picture(1))

    def test_a_block_whose_mlp_gets_something_else(self) -> None:
        """The residual stream does not show it."""
        tower = SIGLIP.build()
        layer = layers_of(tower)[1]
        layer.__class__ = _louder(type(layer))
        stc_video.attach_cacher(tower)
        with pytest.raises(UnsupportedModelError, match="block 1: its output differs"):
            run(tower, picture(1))


def _marking(layer_class: type, token: int) -> type:
    class Marking(layer_class):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(hidden_states, *args, **kwargs)
            marked = output[0] if isinstance(output, tuple) else output
            marked[:, token] *= 1.01
            return output

    return Marking


def _louder(layer_class: type) -> type:
    class Louder(layer_class):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            inside = self.layer_norm2.register_forward_hook(lambda _m, _a, output: 1.01 * output)
            try:
                return super().forward(hidden_states, *args, **kwargs)
            finally:
                inside.remove()

    return Louder


def _stops_early(tower: nn.Module) -> bool:
    called = []
    hook = layers_of(tower)[-1].register_forward_hook(lambda *_: called.append(1))
    run(tower, picture(1))
    hook.remove()
    return not called


def _mixing(layer_class: type) -> type:
    class Mixing(layer_class):
        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            mean = hidden_states.mean(0, keepdim=True)
            mixed = hidden_states + 0.3 * (mean - hidden_states)
            return super().forward(mixed, *args, **kwargs)

    return Mixing


class TestOtherArgumentsLater:
    @pytest.mark.parametrize("policy", ["motion", "stc"])
    def test_frames_of_another_shape_with_as_many_tokens(self, policy: str) -> None:
        """The tokens stay the same; where they are does not."""
        tower = BY_NAME["DINOv3ViTModel"].build()
        grey = [torch.ones((1, 3, side, SIZE**2 // side)) for side in (SIZE, SIZE // 2, SIZE)]
        with torch.no_grad():
            stock = [tower(pixel_values=picture)[0] for picture in grey]
            cacher = stc_video.attach_cacher(tower, policy)
            ours = [tower(pixel_values=picture)[0] for picture in grey]
        assert_same(ours, stock)
        assert not torch.allclose(stock[0], stock[1])
        assert "places" in cacher.last_frames[0].reason

    def test_a_mask_of_padding_that_comes_later(self) -> None:
        entry = BY_NAME["Siglip2VisionModel"]
        tower = entry.build()

        def whole(frames: Tensor) -> dict[str, Any]:
            made = siglip2_rows(frames)
            made["pixel_attention_mask"][:] = 1
            made["spatial_shapes"][:] = 4
            return made

        with torch.no_grad():
            stock = [tower(**make(picture(1)))[0] for make in (whole, siglip2_rows)]
            cacher = stc_video.attach_cacher(tower)
            ours = [tower(**make(picture(1)))[0] for make in (whole, siglip2_rows, siglip2_rows)]
        assert_same(ours[:2], stock)
        assert torch.equal(ours[1], ours[2])
        assert cacher.stats().unchanged == 1

    @pytest.mark.parametrize("policy", ["motion", "stc"])
    def test_frames_that_are_masked_in_another_way(self, policy: str) -> None:
        """The pixels stay the same; what their tokens see does not."""
        tower = BY_NAME["Idefics2VisionTransformer"].build()
        masks = torch.ones((3, 1, 4, 4), dtype=torch.bool)
        masks[1, :, -1] = False
        masks[2, :, :, -1] = False
        with torch.no_grad():
            stock = [tower(picture(1), patch_attention_mask=mask)[0] for mask in masks]
            stc_video.attach_cacher(tower, policy)
            ours = [tower(picture(1), patch_attention_mask=mask)[0] for mask in masks]
        assert_same(ours, stock)

    def test_a_causal_mask_that_comes_later(self) -> None:
        tower = SIGLIP.build()
        cacher = stc_video.attach_cacher(tower)
        run(tower, picture(1))
        states = torch.randn(1, 16, 48)
        causal = torch.ones(16, 16, dtype=torch.bool).tril()[None, None]
        with torch.no_grad(), pytest.raises(UnsupportedModelError, match="not the same for all"):
            getattr(tower, "vision_model", tower).encoder(states, attention_mask=causal)
        run(tower, picture(1))
        assert cacher.stats().unchanged == 1, "a refused call costs nothing of the stream"

    def test_an_attention_module_that_becomes_causal_under_another_implementation(self) -> None:
        """Eager attention does not look at ``is_causal``, torch's does."""
        entry = BY_NAME["Phi4MultimodalVisionModel"]
        tower = entry.build()
        tower.set_attn_implementation("eager")
        expected = run(tower, picture(1), entry=entry)
        stc_video.attach_cacher(tower)
        assert_same(run(tower, picture(1), entry=entry), expected)
        tower.set_attn_implementation("sdpa")
        with pytest.raises(UnsupportedModelError, match=r"this call .* is refused: .*is_causal"):
            run(tower, picture(2), entry=entry)

    @pytest.mark.parametrize("policy", ["motion", "stc"])
    @pytest.mark.parametrize("entry", BATCHED[:3], ids=str)
    def test_more_streams_than_at_first(self, entry: Entry, policy: str) -> None:
        tower = entry.build()
        pictures = torch.cat([picture(1), picture(2), picture(3)])
        stock = run(tower, pictures, entry=entry)
        cacher = stc_video.attach_cacher(tower, policy)
        run(tower, picture(4), entry=entry)
        with cacher.streams(["a", "b", "c"]):
            assert_same(run(tower, pictures, entry=entry), stock)


def test_after_the_first_frame_nothing_of_the_check_is_left() -> None:
    tower, rows = SIGLIP.build(), []
    for layer in layers_of(tower):
        layer.mlp.fc1.register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[-2]))
    before = contents(tower)
    cacher = stc_video.attach_cacher(tower)
    run(tower, picture(1))
    assert sum(rows) == 3 * 16 + 3 * 2 + 2 * 8, "an eighth of a dense frame, and two small pictures"
    rows.clear()
    run(tower, picture(2))
    assert rows == [16] * 3
    cacher.detach()
    assert contents(tower) == before
