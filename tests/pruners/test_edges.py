# SPDX-License-Identifier: Apache-2.0
"""Inputs at the edge, for every pruner: refused in one sentence, or what the documents say."""

from __future__ import annotations

import math

import pytest
import torch
from test_every_pruner import CASES, IDS, TOKENS, chosen, prune, video

from stc_video import make_pruner
from stc_video.pruners import PRUNERS, Attention, PrunedTokens

COUNTED = [name for name in PRUNERS if name != "none"]
FREE = [case for case in CASES if case[0] != "visionzip"]  # which looks at the attention alone


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("tokens_per_frame", 0, "tokens_per_frame must be at least 1, got 0"),
        ("tokens_per_frame", -3, "tokens_per_frame must be at least 1, got -3"),
        ("retention_ratio", 0.0, "retention_ratio must be above 0 and at most 1, got 0.0"),
        ("retention_ratio", 1.01, "retention_ratio must be above 0 and at most 1, got 1.01"),
        ("retention_ratio", math.nan, "retention_ratio must be above 0 and at most 1, got nan"),
        ("video_pruning_rate", 1.0, "video_pruning_rate must be at least 0 and below 1, got 1.0"),
        ("video_pruning_rate", -0.1, "video_pruning_rate must be at least 0 and below 1"),
    ],
)
def test_no_budget_and_too_much_of_it(name, setting, value, message):
    with pytest.raises(ValueError, match=message):
        make_pruner(name, **{setting: value})


def test_an_unknown_setting_is_answered_with_those_that_there_are():
    with pytest.raises(ValueError, match="settings: tokens; it takes tokens_per_frame, ") as caught:
        make_pruner("stc", tokens=3)
    assert "__init__" not in str(caught.value)


def test_none_takes_no_budget():
    with pytest.raises(ValueError, match="'none' does not take these settings"):
        make_pruner("none", tokens_per_frame=3)


@pytest.mark.parametrize("name", COUNTED)
def test_a_budget_above_the_tokens_of_a_frame(name):
    pruner = make_pruner(name, tokens_per_frame=TOKENS + 1)
    with pytest.raises(ValueError, match=r"between 1 and 20 .*, got 21") as caught:
        prune(pruner, video(2), slice(0, 2))
    assert "\n" not in str(caught.value)
    if name != "visionzip":  # merges a part of its number
        settings = {"tokens_per_frame": TOKENS}
        kept = prune(make_pruner(name, **settings), video(2), slice(0, 2))
        assert kept.counts.tolist() == [TOKENS] * 2


@pytest.mark.parametrize("name", ["dtd", "streaming_assistant", "evs", "vidcom2"])
def test_a_floor_above_the_tokens_of_a_frame(name):
    with pytest.raises(ValueError, match=r"floor must be between 0 and 20 .*, got 21"):
        prune(make_pruner(name, floor=21), video(2), slice(0, 2))


@pytest.mark.parametrize("grid", [(3, 7), (20, 0), (-4, -5), (1, 1)])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_wrong_grids(name, settings, grid):
    pruner = make_pruner(name, **settings)
    with pytest.raises(ValueError, match=rf"grid must have 20 places .*, got {grid[0]}x{grid[1]}"):
        pruner(video(1)["features"], grid)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_frames_without_a_finite_number(name, settings, bad):
    """The count holds, places are places, and the stream recovers."""
    data = video(6)
    data["features"][:2] = bad
    pruner = make_pruner(name, **settings)
    parts = [prune(pruner, data, slice(i, i + 1)) for i in range(6)]
    for part in parts:
        row = chosen(part)[0]
        assert row == sorted(set(row))
        assert all(0 <= place < TOKENS for place in row)
        if pruner.exact:
            assert part.counts[0] == settings.get("tokens_per_frame", part.counts[0])
    assert all(part.tokens.isfinite().all() for part in parts[3:])
    assert parts[-1].scores is None or parts[-1].scores.isfinite().all()


@pytest.mark.parametrize(("name", "settings"), FREE)
def test_a_token_with_nan_is_kept_unless_tokens_are_merged(name, settings):
    """What cannot be judged is not dropped."""
    data = video(2)
    prune(pruner := make_pruner(name, **settings), data, slice(0, 1))
    data["features"][1, 11] = math.nan
    kept = chosen(prune(pruner, data, slice(1, 2)))[0]
    if name in ("stc", "vidcom2"):  # it spoils the frame's mean, and with it every score
        assert kept == list(range(len(kept)))
    elif name not in ("tome", "uniform", "random") and settings.get("mode") != "pixel":
        assert 11 in kept


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_after_another_size_the_stream_is_as_new(name, settings):
    data = video(3)
    pruner = make_pruner(name, **settings)
    prune(pruner, data, slice(0, 2))

    def small(seed: int) -> PrunedTokens:
        generator = torch.Generator().manual_seed(seed)
        attention = Attention(*(torch.randn((1, 16, 2, 8), generator=generator) for _ in "qk"))
        return pruner(
            torch.randn((1, 16, 16), generator=generator), (4, 4), "a",
            pixels=torch.rand((1, 3, 8, 8), generator=generator), attention=attention,
        )  # fmt: skip

    first, second = chosen(small(1)), chosen(small(2))
    back = chosen(prune(pruner, data, slice(2, 3)))
    if name in ("stc", "random"):  # one number per channel, and a number of the frame: no size
        return
    pruner = make_pruner(name, **settings)
    assert [chosen(small(1)), chosen(small(2))] == [first, second]
    assert chosen(prune(make_pruner(name, **settings), data, slice(2, 3))) == back


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_a_call_without_frames(name, settings):
    data = video(3)
    pruner = make_pruner(name, **settings)
    empty = prune(pruner, data, slice(0, 0))
    assert empty.tokens.shape[0] == empty.indices.shape[0] == empty.counts.shape[0] == 0
    whole = chosen(prune(make_pruner(name, **settings), data, slice(0, 3)))
    if name != "stc":  # whose memory counts calls
        assert chosen(prune(pruner, data, slice(0, 3))) == whole


@pytest.mark.parametrize("name", COUNTED)
def test_one_token_of_one_token(name):
    settings = {"contextual": 0.0} if name == "visionzip" else {}
    heads = torch.ones(2, 2, 1, 4)
    kept = make_pruner(name, retention_ratio=0.05, **settings)(
        torch.ones(2, 1, 4), (1, 1), pixels=torch.ones(2, 3, 4, 4),
        attention=Attention(heads, heads, 1),
    )  # fmt: skip
    assert kept.counts.tolist() == [1, 1]
    assert kept.indices.tolist() == [[0], [0]]
