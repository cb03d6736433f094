# SPDX-License-Identifier: Apache-2.0
"""Towers with all pictures of a call in one row: frames of one stream, of several, of any size."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from test_every_tower import MOTION, assert_same, picture
from torch import Tensor, nn
from zoo import ENTRIES, PATCH, Entry, tensors

import stc_video
from stc_video import CacheConfig

NAMES = ("pixtral", "hunyuan_vl", "hy_v4_vl", "minimax_m3_vl", "minicpmv4_6", "minicpm_ocr")
ROWS = [entry for entry in ENTRIES if entry.model in NAMES]
STREAMS = ("door", "yard")


def arguments(entry: Entry, pictures: list[Tensor]) -> dict[str, Any]:
    """Arguments of a call with pictures (1, 3, H, W) that need not be of one size."""
    sizes = [[one.shape[2] // PATCH, one.shape[3] // PATCH] for one in pictures]
    if entry.model == "pixtral":
        if "image_sizes" not in signature(transformers.PixtralVisionModel.forward).parameters:
            return {"pixel_values": [one[0] for one in pictures]}  # of transformers 4.45
        height, width = (max(one.shape[axis] for one in pictures) for axis in (2, 3))
        whole = torch.zeros((len(pictures), 3, height, width))
        for row, one in zip(whole, pictures, strict=True):
            row[:, : one.shape[2], : one.shape[3]] = one[0]
        return {"pixel_values": whole, "image_sizes": PATCH * torch.tensor(sizes)}
    is_merged = entry.model == "minimax_m3_vl"
    merge, times = (2, 2) if is_merged else (1, 1)
    rows = torch.cat([patches(one, merge, times) for one in pictures])
    if "target_sizes" in entry.arguments(picture(0)):
        wide = torch.cat(list(rows[:, :, 0]), dim=-1)[None]
        return {"pixel_values": wide, "target_sizes": torch.tensor(sizes)}
    grids = torch.tensor([[1, *size] for size in sizes])
    return {"pixel_values": rows.flatten(1), "grid_thw": grids}


def patches(one: Tensor, merge: int, times: int) -> Tensor:
    """(places, 3, times, PATCH, PATCH) of a picture (1, 3, H, W), in merge blocks."""
    high, wide = (side // PATCH // merge for side in one.shape[2:])
    cut = one.view(3, high, merge, PATCH, wide, merge, PATCH).permute(1, 4, 2, 5, 0, 3, 6)
    return cut.reshape(-1, 3, 1, PATCH, PATCH).repeat(1, 1, times, 1, 1)


def call(tower: nn.Module, entry: Entry, *pictures: Tensor) -> list[Tensor]:
    with torch.no_grad():
        output = tower(**arguments(entry, list(pictures)))
    return [tensor.clone() for tensor in tensors(output) if tensor.is_floating_point()]


def wide_picture(seed: int, rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, 3, rows * PATCH, columns * PATCH), generator=generator)


def changed(one: Tensor, seed: int) -> Tensor:
    """The same but for its first patch."""
    other = one.clone()
    other[..., :PATCH, :PATCH] = wide_picture(seed, 1, 1)
    return other


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_a_row_is_what_one_picture_a_call_gives(entry: Entry) -> None:
    """With cached frames, of one stream and of two; the kinds of frames are the same, too."""
    shown = [picture(1), picture(1), changed(picture(1), 2), picture(3)]
    one_by_one, in_a_row = entry.build(), entry.build()
    single = stc_video.attach_cacher(one_by_one, MOTION)
    several = stc_video.attach_cacher(in_a_row, MOTION)
    each = [call(one_by_one, entry, one)[0] for one in shown]
    together = call(in_a_row, entry, *shown)[0]
    torch.testing.assert_close(together, torch.cat(each, dim=1), rtol=1e-4, atol=1e-4)
    kinds = [record.kind for record in several.last_frames]
    assert kinds == ["dense", "unchanged", "cached", "dense"]
    assert several.stats().cost == pytest.approx(single.stats().cost)

    with several.streams(STREAMS):
        call(in_a_row, entry, *shown[1:3], *shown[2:])
    assert [r.kind for r in several.last_frames] == ["dense", "cached", "dense", "dense"]


@pytest.mark.parametrize("entry", ROWS, ids=str)
@pytest.mark.parametrize("policy", ["motion", "stc"])
def test_pictures_of_several_sizes(entry: Entry, policy: str) -> None:
    """Each stream has its own size; in one stream another size begins afresh."""
    tower = entry.build()
    sizes = ((4, 2), (4, 4), (2, 6))
    shown = [wide_picture(seed, *size) for seed, size in enumerate(sizes)]
    stock = call(tower, entry, *shown)
    settings = {"ratio": 1.0} if policy == "stc" else {}
    cacher = stc_video.attach_cacher(tower, CacheConfig(policy=policy, **settings))
    assert_same(call(tower, entry, *shown), stock)
    names = ("a", "b", "c")
    with cacher.streams(names):
        assert_same(call(tower, entry, *shown), stock)
        assert_same(call(tower, entry, *shown), stock)
    if policy == "motion":
        each = cacher.stats().streams
        assert [(each[name].dense, each[name].unchanged) for name in names] == [(1, 1)] * 3
        assert each["default"].dense == 3


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_as_many_tokens_in_other_pictures(entry: Entry) -> None:
    """What tells them apart may be the content of an argument alone (Pixtral's mask)."""
    tower = entry.build()
    if entry.model == "pixtral" and Version(transformers.__version__) < Version("5.24"):
        pytest.skip("the release has no places for a picture beyond the configuration's size")
    wide, halves = [wide_picture(1, 4, 8)], [wide_picture(2, 4, 4), wide_picture(3, 4, 4)]
    uneven = [wide_picture(4, 4, 2), wide_picture(5, 4, 6)]
    calls = (wide, wide, halves, uneven, halves, wide)
    stock = [call(tower, entry, *shown) for shown in calls]
    stc_video.attach_cacher(tower)
    for shown, expected in zip(calls, stock, strict=True):
        assert_same(call(tower, entry, *shown), expected)


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_a_row_that_does_not_go_round_is_refused(entry: Entry) -> None:
    tower = entry.build()
    cacher = stc_video.attach_cacher(tower)
    with cacher.streams(STREAMS), pytest.raises(ValueError, match=r"per stream \(2\), got 3"):
        call(tower, entry, picture(1), picture(2), picture(3))
    assert cacher.stats().frames == 0


@pytest.mark.parametrize("entry", ROWS, ids=str)
def test_a_row_of_several_pictures_is_measured(entry: Entry) -> None:
    tower = entry.build()
    cacher = stc_video.attach_cacher(tower)
    timings = cacher.warmup(**arguments(entry, [picture(1), picture(2)]))
    assert timings is not None
    with pytest.raises(ValueError, match="pictures must be of one size, got 2 of several"):
        cacher.warmup(**arguments(entry, [wide_picture(1, 4, 2), picture(2)]))
