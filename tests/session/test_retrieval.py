# SPDX-License-Identifier: Apache-2.0
"""Scores, orders, the index."""

from __future__ import annotations

import pytest
import torch
from rekv_oracle import rotated

from stc_video.memory.index import BlockIndex
from stc_video.memory.retrieval import best_order, choose, diverse_order, similarity
from stc_video.rotary import apply_rotary


def rows(count: int, seed: int = 0, width: int = 6) -> torch.Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(seed))


def test_grouped_queries_score_as_repeated_keys_do():
    heads, groups, width, tokens = 6, 2, 4, 5
    generator = torch.Generator().manual_seed(1)
    query = torch.randn((heads, tokens, width), generator=generator)
    keys = torch.randn((groups, width), generator=generator)
    repeated = keys.repeat_interleave(heads // groups, 0)
    expected = (query.mean(1) * repeated).sum()
    from stc_video.memory.decoder import DecoderLayer

    layer = DecoderLayer(None, heads, groups, width, 1.0, None, None)
    torch.testing.assert_close(layer.question_query(query) @ keys.flatten(), expected)


def test_similarity_by_product_and_by_cosine():
    query, vectors = rows(1)[0], rows(4, 2)
    torch.testing.assert_close(similarity(query, vectors, normalised=False), vectors @ query)
    cosine = torch.cosine_similarity(query[None], vectors)
    torch.testing.assert_close(similarity(query, vectors, normalised=True), cosine)


def test_a_budget_is_filled_exactly_and_in_temporal_order():
    assert choose([3, 0, 2, 1], [4, 4, 4, 4], 10) == [(0, 4), (2, 2), (3, 4)]
    assert choose([3, 0], [4, 4, 4, 4], 100) == [(0, 4), (3, 4)]
    assert choose([], [], 5) == []
    assert best_order(torch.tensor([0.1, 0.9, 0.5]), 2) == [1, 2]


def test_mmr_avoids_what_is_there_already():
    vectors = torch.tensor([[1.0, 0.0], [0.999, 0.01], [0.6, 0.8]])
    scores = torch.tensor([0.9, 0.89, 0.5])
    assert diverse_order(scores, vectors, 2, 0.0) == [0, 1]
    assert diverse_order(scores, vectors, 2, 0.6) == [0, 2]
    assert diverse_order(scores, vectors, 9, 0.6) == [0, 2, 1]


def test_the_index_holds_its_rows_through_removals_and_growth():
    index, held = BlockIndex(2, 6, torch.device("cpu"), nearest=False), {}
    for number in range(400):
        vector = torch.stack([rows(1, number)[0], rows(1, number + 1000)[0]])
        index.add(number, vector)
        held[number] = vector
        if number % 3 == 2:
            gone = sorted(held)[len(held) // 2]
            index.remove(gone)
            del held[gone]
        if len(held) > 50:
            index.remove(min(held))
            del held[min(held)]
    assert index.numbers() == sorted(held)
    assert torch.equal(index.all_vectors(), torch.stack(list(held.values()), 1))
    assert torch.equal(index.vectors(1), torch.stack([v[1] for v in held.values()]))
    assert index.nbytes <= 2 * 128 * 6 * 4 * 2


def test_the_most_redundant_block_is_found_and_merged():
    index = BlockIndex(1, 6, torch.device("cpu"), nearest=True)
    vectors = rows(6)
    vectors[4] = vectors[1] * 2  # same direction
    vectors[5] = vectors[2] + 0.01 * vectors[0]
    for number, vector in enumerate(vectors):
        index.add(number, vector[None])
    assert index.most_redundant(range(6)) == (4, 1)
    assert index.most_redundant([0]) is None
    index.merge(4, 1, (1, 2))
    torch.testing.assert_close(index.vectors(0)[1], (vectors[1] + 2 * vectors[4]) / 3)
    assert index.most_redundant(range(6)) == (5, 2)
    index.remove(2)  # its neighbour is gone, so another one is looked for
    number, neighbour = index.most_redundant([5])
    likeness = torch.cosine_similarity(vectors[5][None], index.vectors(0)[:-1])
    assert (number, neighbour) == (5, index.numbers()[int(likeness.argmax())])


def test_rotation_of_single_tokens_and_its_composition():
    width = 8
    inverse = 10_000.0 ** -(torch.arange(0, width, 2) / width)
    x = torch.randn((2, 3, width), generator=torch.Generator().manual_seed(0))

    def table(positions):
        angles = torch.tensor(positions)[:, None].double() * inverse.double()
        angles = torch.cat([angles, angles], -1)
        return angles.cos().float(), angles.sin().float()

    def right(positions):
        axes = [0] * len(inverse)
        return rotated(x, [(position,) for position in positions], axes, inverse).float()

    once = apply_rotary(x, *table([3, 7, 100]))
    torch.testing.assert_close(once, right([3, 7, 100]))
    moved = apply_rotary(once, *table([-3, -3, -3]))
    torch.testing.assert_close(moved, right([0, 4, 97]), atol=1e-5, rtol=0)
    assert torch.equal(apply_rotary(x, *table([0, 0, 0])), x)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_index_that_is_restored_is_the_same(count):
    index = BlockIndex(2, 6, torch.device("cpu"), nearest=True)
    for number in range(count):
        index.add(3 * number, rows(2, number))
    other = BlockIndex(2, 6, torch.device("cpu"), nearest=True)
    other.restore(index.numbers(), index.all_vectors(), index.nearest())
    assert other.numbers() == index.numbers()
    assert other.most_redundant(range(99)) == index.most_redundant(range(99))
    for one in (index, other):
        one.add(100, rows(2, 100))
    assert torch.equal(index.all_vectors(), other.all_vectors())
