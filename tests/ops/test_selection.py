# SPDX-License-Identifier: Apache-2.0
"""token_cosine, select_changed, select_changed_below."""

from __future__ import annotations

import oracles
import pytest
import torch
from operands import EMPTY_SHAPES

import stc_kernels
from stc_kernels import select_changed, select_changed_below, token_cosine


@pytest.fixture
def pair(shape, dtype, layout, generator):
    current = torch.randn(shape, generator=generator)
    reference = current + 0.7 * torch.randn(shape, generator=generator)
    return layout(current.to(dtype)), layout(reference.to(dtype))


@pytest.mark.parametrize("shared", [False, True], ids=["per-frame", "shared"])
def test_cosine_matches_float64(backend, pair, shared):
    current, reference = pair
    reference = reference[0] if shared else reference
    similarity = token_cosine(current, reference)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(
        similarity.double(), oracles.cosine(current, reference), atol=5e-6, rtol=0
    )


@pytest.mark.parametrize("shared", [False, True], ids=["per-frame", "shared"])
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_select_changed_takes_the_least_similar(backend, pair, shared, share):
    current, reference = pair
    reference = reference[0] if shared else reference
    tokens = current.shape[1]
    k = max(1, int(share * tokens))
    pinned = min(2, k)
    indices, similarity = select_changed(current, reference, k, pinned=pinned)
    assert indices.dtype == torch.int32
    assert indices.shape == (current.shape[0], k)
    expected = oracles.cosine(current, reference)
    torch.testing.assert_close(similarity.double(), expected, atol=5e-6, rtol=0)
    for row, cosines in zip(indices, expected, strict=True):
        assert row[:pinned].tolist() == list(range(pinned))
        oracles.assert_selects(row, oracles.changed_keys(cosines, pinned), k)


@pytest.mark.parametrize("threshold", [-1.0, 0.7, 0.85, 1.0])
@pytest.mark.parametrize("capacity_share", [0.2, 1.0])
def test_select_changed_below_lists_and_counts(backend, pair, threshold, capacity_share):
    current, reference = pair
    tokens = current.shape[1]
    capacity = max(1, int(capacity_share * tokens))
    indices, counts, similarity = select_changed_below(
        current, reference, threshold, capacity, pinned=1
    )
    assert indices.shape == (current.shape[0], capacity)
    assert indices.dtype == counts.dtype == torch.int32
    for row, count, cosines in zip(indices, counts.tolist(), similarity, strict=True):
        # The comparison itself is part of the definition, so it is done on what was returned.
        changed = (cosines <= threshold) | (torch.arange(tokens) < 1)
        assert count == int(changed.sum())
        listed = min(count, capacity)
        assert row[listed:].tolist() == [-1] * (capacity - listed)
        oracles.assert_selects(row[:listed], oracles.changed_keys(cosines, 1), listed)


def test_ties_go_to_the_lower_index(backend):
    current = torch.ones(1, 9, 4)
    reference = torch.ones(1, 9, 4)
    assert select_changed(current, reference, 4)[0].tolist() == [[0, 1, 2, 3]]
    reference[0, [3, 6, 8]] = -1.0
    assert select_changed(current, reference, 2)[0].tolist() == [[3, 6]]
    assert select_changed(current, reference, 4)[0].tolist() == [[0, 3, 6, 8]]
    indices, counts, _ = select_changed_below(current, reference, 0.0, 2)
    assert indices.tolist() == [[3, 6]]
    assert counts.tolist() == [3]


def test_zero_and_minus_zero_tie(backend):
    current = torch.zeros(1, 4, 2)
    current[0, 1, 0] = -1.0  # its dot product with (0, 1) is -0
    reference = torch.tensor([[0.0, 1.0]]).expand(1, 4, 2)
    assert select_changed(current, reference, 2)[0].tolist() == [[0, 1]]
    current = current.flip(1)
    assert select_changed(current, reference, 2)[0].tolist() == [[0, 1]]


def test_a_zero_token_has_similarity_zero(backend, dtype):
    current = torch.zeros(1, 3, 8, dtype=dtype)
    current[0, 1] = 1.0
    similarity = token_cosine(current, torch.ones(3, 8, dtype=dtype))
    torch.testing.assert_close(similarity, torch.tensor([[0.0, 1.0, 0.0]]))


def test_large_and_tiny_values_stay_exact(backend):
    """Squares must not overflow or vanish in half precision."""
    scale = torch.tensor([60000.0, 6e-5, 1.0])[None, :, None]
    current = (torch.ones(1, 3, 64) * scale).half()
    similarity = token_cosine(current, torch.ones(3, 64).half())
    torch.testing.assert_close(similarity, torch.ones(1, 3), atol=1e-3, rtol=0)


def test_a_nan_threshold_is_refused_by_the_raw_operator_too(backend, generator):
    x, y = torch.randn((2, 2, 9, 4), generator=generator)
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        torch.ops.stc_kernels.select_changed_below(x, y, float("nan"), 3, 1, backend=backend)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_counts_as_changed_most(backend, dtype, bad):
    current = torch.ones(1, 6, 8)
    reference = torch.ones(6, 8)
    current[0, 2] = -1.0
    current[0, 4, 3] = bad
    current[0, 5, 0] = bad
    current, reference = current.to(dtype), reference.to(dtype)
    indices, similarity = select_changed(current, reference, 2)
    assert similarity[0, 4].isnan()
    assert indices.tolist() == [[4, 5]]
    assert select_changed(current, reference, 3, pinned=1)[0].tolist() == [[0, 4, 5]]
    listed, counts, _ = select_changed_below(current, reference, 0.0, 6)
    assert listed.tolist() == [[2, 4, 5, -1, -1, -1]]
    assert counts.tolist() == [3]


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty_inputs(backend, shape):
    batch, tokens, _ = shape
    current, reference = torch.empty(shape), torch.empty(shape[1:])
    k = min(2, tokens)
    indices, similarity = select_changed(current, reference, k)
    assert indices.shape == (batch, k)
    assert similarity.shape == (batch, tokens)
    below, counts, _ = select_changed_below(current, reference, 0.5, k)
    assert below.shape == (batch, k)
    assert counts.shape == (batch,)
    if shape[2] == 0:
        assert similarity.eq(0).all()
        assert indices.tolist() == [[0, 1]] * batch


def test_result_does_not_depend_on_the_number_of_threads(backend, generator):
    current = torch.randn(3, 500, 96, generator=generator)
    reference = torch.randn(500, 96, generator=generator)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(select_changed(current, reference, 100))
    finally:
        torch.set_num_threads(before)
    for indices, similarity in results[1:]:
        assert torch.equal(indices, results[0][0])
        if backend != "reference":  # torch's own reductions split by thread
            assert torch.equal(similarity, results[0][1])


ONES = torch.ones(2, 5, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: select_changed(ONES, ONES, 0), ValueError, r"k must be between 1 and 5 \(tokens\), got 0"),
        (lambda: select_changed(ONES, ONES, 6), ValueError, r"k must be between 1 and 5 \(tokens\), got 6"),
        (lambda: select_changed(ONES, ONES, 2, pinned=3), ValueError, "pinned must be between 0 and 2"),
        (lambda: select_changed_below(ONES, ONES, 0.5, 6), ValueError, "capacity must be between 1 and 5"),
        (lambda: select_changed_below(ONES, ONES, float("nan"), 5), ValueError, "threshold must be a number"),
        (lambda: token_cosine(ONES[0], ONES[0]), ValueError, "current must have 3 dimensions"),
        (lambda: token_cosine(ONES, ONES[:1]), ValueError, r"reference must have shape \(2, 5, 4\) or \(5, 4\)"),
        (lambda: token_cosine(ONES, ONES[..., :3]), ValueError, "reference must have shape"),
        (lambda: token_cosine(ONES.double(), ONES.double()), TypeError, "float32, float16 or bfloat16, got float64"),
        (lambda: token_cosine(ONES, ONES.half()), TypeError, "dtype of current"),
        (lambda: token_cosine(ONES, ONES.to("meta")), ValueError, "device of current"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_repeated_calls_agree_bit_for_bit(backend, generator):
    current = torch.randn(2, 300, 64, generator=generator)
    first = stc_kernels.select_changed(current, current.flip(1), 40)
    again = stc_kernels.select_changed(current, current.flip(1), 40)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
