# SPDX-License-Identifier: Apache-2.0
"""Token merging and attention capture trust no tower either; hints name modules that exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers
from test_every_tower import SUPPORTED, assert_same, call, contents, picture
from torch import nn
from zoo import ENTRIES, Entry

import stc_video
from stc_video import UnsupportedModelError


@pytest.mark.parametrize("name", ["DINOv3ViTModel", "Phi4MultimodalVisionModel", "MLCDVisionModel"])
@pytest.mark.parametrize("what", ["attach_tome", "capture_attention"])
def test_the_others_that_take_towers_apart_do_not_trust_them_either(name: str, what: str) -> None:
    entry = next(e for e in ENTRIES if e.name == name)
    tower = entry.build()
    before = contents(tower)
    getattr(stc_video, what)(tower)
    with pytest.raises(UnsupportedModelError, match=f"^{what}: .* is not a supported tower"):
        call(tower, entry, picture(1))
    assert contents(tower) == before
    call(tower, entry, picture(1))


@pytest.mark.parametrize("what", ["attach_tome", "capture_attention"])
def test_a_merger_between_two_blocks_is_refused_by_the_others(what: str) -> None:
    entry = next(e for e in ENTRIES if e.model == "minicpmv4_6")
    tower = entry.build()
    before = contents(tower)
    with pytest.raises(UnsupportedModelError, match=f"^{what}: .* a merger behind block 1 of 3"):
        getattr(stc_video, what)(tower)
    assert contents(tower) == before


@pytest.mark.parametrize("states", [True, [1, -1], [-3]], ids=str)
def test_hidden_states_on_both_sides_of_a_merger(states: bool | list[int]) -> None:
    entry = next(e for e in ENTRIES if e.model == "minicpmv4_6")
    tower = entry.build()
    given = entry.arguments(picture(1)) | {"output_hidden_states": states}
    with torch.no_grad():
        stock = tower(**given).hidden_states
        stc_video.attach_cacher(tower)
        ours = tower(**given).hidden_states, tower(**given).hidden_states
    wanted = range(len(stock)) if states is True else states
    for number in wanted:
        for hidden in ours:
            torch.testing.assert_close(hidden[number], stock[number])


@pytest.mark.parametrize("entry", [e for e in SUPPORTED if "video" not in str(e)][:21], ids=str)
def test_supported_towers_can_be_captured(entry: Entry) -> None:
    tower = entry.build()
    stock = call(tower, entry, picture(1))
    with stc_video.capture_attention(tower) as capture:
        assert_same(call(tower, entry, picture(1)), stock)
        assert_same(call(tower, entry, picture(1)), stock)
        if "padded" in str(entry) or "siglip2" in str(entry):
            with pytest.raises(ValueError, match="had padding"):
                capture.take()
        else:
            capture.take()


SMALL_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 56, "patch_size": 14,
}  # fmt: skip
SMALL_TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 64,
}  # fmt: skip


def _clip() -> nn.Module:
    text = SMALL_TEXT | {"projection_dim": 16}
    config = transformers.CLIPConfig(text_config=text, vision_config=SMALL_TOWER)
    return transformers.CLIPModel(config)


def _video_llava() -> nn.Module:
    config = transformers.VideoLlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**SMALL_TOWER),
        text_config=transformers.LlamaConfig(**SMALL_TEXT),
        image_token_index=60,
        video_token_index=61,
    )
    return transformers.VideoLlavaForConditionalGeneration(config)


@pytest.mark.parametrize("build", [_clip, _video_llava])
def test_a_hint_names_modules_that_exist(build: Callable[[], nn.Module]) -> None:
    model = build().eval()
    with pytest.raises(UnsupportedModelError, match="holds 2 stacks") as refused:
        stc_video.attach_cacher(model)
    names = str(refused.value).rsplit(": ", 1)[1].split(" or ")
    assert len(names) == 2
    for name in names:
        stc_video.attach_cacher(model.get_submodule(name.removeprefix("model."))).detach()


@pytest.mark.skipif(not hasattr(transformers, "MiniCPMV4_6Config"), reason="a later release")
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({}, [72, 17, 11]), ({"hidden_size": 1152, "intermediate_size": 4304,
                           "num_hidden_layers": 27, "num_attention_heads": 16}, [53, 13, 34])],
)  # fmt: skip
def test_how_much_of_minicpm_lies_behind_its_merger(sizes: dict, expected: list[int]) -> None:
    """Percent of multiplications in front, in the merger and behind, as in docs/limits.md."""
    config = transformers.MiniCPMV4_6Config(vision_config=sizes).vision_config
    width, inner, patches = config.hidden_size, config.intermediate_size, 32 * 32

    def block(tokens: int) -> int:
        return tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width

    merged, front = patches // 4, config.insert_layer_id + 1
    windows = patches * (4 * width * width + 2 * 4 * width)
    counts = [
        front * block(patches),
        windows + merged * (4 * width * 4 * inner + 4 * inner * width),
        (config.num_hidden_layers - front) * block(merged),
    ]
    assert [round(100 * count / sum(counts)) for count in counts] == expected
