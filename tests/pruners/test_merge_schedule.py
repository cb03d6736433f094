# SPDX-License-Identifier: Apache-2.0
"""How many tokens each block merges away."""

from __future__ import annotations

import pytest

from stc_video.pruners.merge_schedule import MergeSchedule


def steps(blocks, tokens, r=None, **budget):
    settings = {"tokens_per_frame": None, "retention_ratio": None, "video_pruning_rate": None}
    return MergeSchedule(blocks, r, **(settings | budget)).steps(tokens)


def test_a_given_r_is_clamped_to_half():
    assert steps(4, 16, r=5) == [5, 5, 3, 1]
    assert steps(3, 100) == [8, 8, 8]
    assert steps(3, 100, r=[0, 7, 90]) == [0, 7, 46]


@pytest.mark.parametrize("blocks", [1, 2, 5, 27])
@pytest.mark.parametrize("tokens", [1, 7, 196, 729])
def test_every_number_that_can_be_left_is_left(blocks, tokens):
    least = -(-tokens // 2**blocks)
    for left in range(least, tokens + 1):
        rest = tokens
        for step in steps(blocks, tokens, tokens_per_frame=left):
            assert 0 <= step <= rest // 2
            rest -= step
        assert rest == left


def test_where_halving_allows_it_the_steps_are_even():
    taken = steps(27, 729, video_pruning_rate=0.5)
    assert sum(taken) == 729 - 365
    assert max(taken) - min(taken) <= 1


def test_too_few_are_refused():
    with pytest.raises(ValueError, match=r"2 blocks .* leave at least 5 of 17, got 4"):
        steps(2, 17, tokens_per_frame=4)
