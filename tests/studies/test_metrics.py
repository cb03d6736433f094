# SPDX-License-Identifier: Apache-2.0
"""The measures of a study against loops, and the marks against pictures made for them."""

from __future__ import annotations

import math

import pytest
import torch

from stc_video.studies.metrics import explained, keep_mask, overlap, pareto_front, share
from stc_video.studies.reference_masks import moved_tokens

GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(4, 7, 5, generator=GENERATOR)
KEEP = torch.rand(4, 7, generator=GENERATOR) < 0.4


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    length = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / length


def test_explained_is_the_nearest_kept_token_up_to_this_frame():
    kept = [FEATURES[f][KEEP[f]] for f in range(4)]
    found = explained(FEATURES, KEEP, kept)
    for f in range(4):
        for n in range(7):
            if KEEP[f, n]:
                assert math.isnan(found[f, n])
                continue
            earlier = [token for g in range(f + 1) for token in kept[g]]
            expected = max((cosine(FEATURES[f, n], token) for token in earlier), default=-1.0)
            assert float(found[f, n]) == pytest.approx(expected, abs=1e-5)


def test_explained_looks_at_no_later_frame():
    kept = [FEATURES[f][KEEP[f]] for f in range(4)]
    whole = explained(FEATURES, KEEP, kept)
    part = explained(FEATURES[:2], KEEP[:2], kept[:2])
    assert torch.equal(whole[:2].nan_to_num(7.0), part.nan_to_num(7.0))


def test_explained_takes_merged_tokens_as_they_are():
    features = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    keep = torch.tensor([[True, False]])
    merged = [torch.tensor([[1.0, 1.0]])]
    assert float(explained(features, keep, merged)[0, 1]) == pytest.approx(math.sqrt(0.5))


def test_explained_at_the_ends():
    nothing = torch.zeros(4, 7, dtype=torch.bool)
    none = explained(FEATURES, nothing, [FEATURES[0][:0]] * 4)
    assert none.eq(-1.0).all()
    assert explained(FEATURES, ~nothing, list(FEATURES)).isnan().all()


def test_shares_and_overlap():
    one = torch.tensor([[True, True, False, False]])
    other = torch.tensor([[True, False, True, True]])
    assert share(one, other) == 0.5
    assert share(other, one) == pytest.approx(1 / 3)
    assert overlap(one, other) == pytest.approx(2 / 5)
    assert overlap(one, one) == 1.0
    assert overlap(one, ~one) == 0.0
    empty = torch.zeros_like(one)
    assert math.isnan(share(empty, one))
    assert share(one, empty) == 0.0
    assert overlap(empty, empty) == 1.0


def test_places_become_a_mask():
    indices = torch.tensor([[0, 3, -1], [2, -1, -1]], dtype=torch.int32)
    assert keep_mask(indices, 4).tolist() == [[1, 0, 0, 1], [0, 0, 1, 0]]
    assert keep_mask(indices[:, :0], 4).sum() == 0


def test_the_front_has_what_nothing_beats():
    costs = [3.0, 1.0, 2.0, 2.0, 4.0, 1.0, math.nan]
    gains = [0.9, 0.5, 0.7, 0.6, 0.9, math.nan, 1.0]
    assert pareto_front(costs, gains) == [1, 2, 0]
    assert pareto_front([1.0, 1.0], [2.0, 2.0]) == [0, 1]
    assert pareto_front([], []) == []


def test_a_token_has_moved_when_its_pixels_have():
    pixels = torch.full((3, 3, 8, 12), 0.5)
    pixels[1, :, 4:, 8:] = 0.8  # row 1, column 2 of 2 x 3, gone again in the last frame
    pixels[2, :, :4, :4] += 0.04  # too little
    marks = moved_tokens(pixels, (2, 3))
    assert marks.tolist() == [[0] * 6, [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert moved_tokens(pixels[:1], (2, 3)).sum() == 0
