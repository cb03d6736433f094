# SPDX-License-Identifier: Apache-2.0
"""bipartite_match, merge_tokens, compact_tokens."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from torch import Tensor

from stc_kernels import bipartite_match, compact_tokens, merge_tokens

OP = "merge_tokens"


def check_match(metric: Tensor, r: int, protected: int, slack: float = 1e-5) -> None:
    """Check one call against float64; two backends may differ where cosines nearly tie."""
    source_map, kept, similarity = bipartite_match(metric, r, protected=protected)
    batch, tokens = metric.shape[:2]
    assert source_map.dtype == kept.dtype == torch.int32
    assert (source_map.shape, kept.shape) == ((batch, tokens), (batch, tokens - r))
    for b in range(batch):
        x = metric[b].double()
        unit = x / x.norm(dim=-1, keepdim=True).clamp_min(1e-8)
        cosine = unit @ unit.T
        partners = [n for n in range(protected, tokens) if n % 2 == 1]
        candidates = [n for n in range(protected, tokens) if n % 2 == 0]
        best = {n: max((float(cosine[n, p]) for p in partners), default=-math.inf)
                for n in candidates}  # fmt: skip
        expected = torch.tensor([best.get(n, -math.inf) for n in range(tokens)])
        torch.testing.assert_close(similarity[b], expected, atol=5e-6, rtol=0)
        gone = sorted(set(range(tokens)) - set(kept[b].tolist()))
        assert kept[b].tolist() == sorted(kept[b].tolist())
        positions = torch.tensor([candidates.index(n) for n in gone], dtype=torch.int32)
        oracles.assert_selects(positions, [-best[n] for n in candidates], r, slack)
        for row, n in enumerate(kept[b].tolist()):
            assert source_map[b, n] == row
        for n in gone:
            into = kept[b, source_map[b, n]].item()
            assert into in partners
            assert cosine[n, into] > best[n] - slack


@pytest.mark.parametrize("protected", [0, 1, 2, 3])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_match_against_float64(backend, shape, dtype, layout, generator, protected, share):
    if protected > shape[1]:
        protected = shape[1]
    metric = layout((0.2 + torch.randn(shape, generator=generator)).to(dtype))
    check_match(metric, int(share * ((shape[1] - protected) // 2)), protected)


def test_equal_tokens_merge_in_order(backend):
    source_map, kept, _ = bipartite_match(torch.ones(1, 7, 4), 2)
    assert kept.tolist() == [[1, 3, 4, 5, 6]]
    assert source_map.tolist() == [[0, 0, 0, 1, 2, 3, 4]]


def test_a_nan_token_merges_last_and_is_merged_into_last(backend):
    metric = torch.ones(1, 6, 4)
    metric[0, 0, 1] = metric[0, 1, 2] = float("nan")
    source_map, kept, similarity = bipartite_match(metric, 2)
    assert kept.tolist() == [[0, 1, 3, 5]]
    assert source_map.tolist() == [[0, 1, 2, 2, 2, 3]]
    assert similarity[0, 0] == -math.inf
    assert bipartite_match(metric, 3)[1].tolist() == [[1, 3, 5]]


def test_a_zero_token_has_cosine_zero(backend):
    metric = torch.zeros(1, 4, 3)
    metric[0, 1:3] = 1.0
    torch.testing.assert_close(
        bipartite_match(metric, 1)[2], torch.tensor([[0.0, -math.inf, 1.0, -math.inf]])
    )


@pytest.mark.parametrize("sized", [False, True], ids=["unit-sizes", "sizes"])
def test_merge_against_float64(backend, shape, dtype, layout, generator, sized):
    batch, tokens, channels = shape
    x = layout((0.5 + torch.randn(shape, generator=generator)).to(dtype))
    count = min(tokens, tokens // 2 + 2)
    source_map = torch.randint(-1, count, (batch, tokens), generator=generator)
    sizes = torch.randint(1, 9, (batch, tokens), generator=generator).float() if sized else None
    merged, total = merge_tokens(x, source_map, count, sizes=sizes)
    assert (merged.dtype, total.dtype) == (dtype, torch.float32)
    expected = torch.zeros(batch, count, channels, dtype=torch.float64)
    weights = torch.zeros(batch, count, dtype=torch.float64)
    for b in range(batch):
        for n, row in enumerate(source_map[b].tolist()):
            if row >= 0:
                weight = 1.0 if sizes is None else float(sizes[b, n])
                expected[b, row] += weight * x[b, n].double()
                weights[b, row] += weight
    expected = torch.where(weights[..., None] > 0, expected / weights[..., None], 0.0)
    torch.testing.assert_close(total.double(), weights)
    rounding = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(merged.double(), expected, atol=rounding, rtol=rounding)


def test_merging_keeps_the_sizes_and_the_weighted_mean(backend, generator):
    x = torch.randn(2, 31, 24, generator=generator)
    sizes = torch.rand(2, 31, generator=generator) + 0.5
    source_map, kept, _ = bipartite_match(x, 15, protected=1)
    merged, total = merge_tokens(x, source_map, 16, sizes=sizes)
    torch.testing.assert_close(total.sum(1), sizes.sum(1))
    before, after = ((t * s[..., None]).sum(1) for t, s in ((x, sizes), (merged, total)))
    torch.testing.assert_close(after, before)
    assert kept[:, 0].eq(0).all()
    assert torch.equal(merged[:, 0], x[:, 0] * sizes[:, :1] / sizes[:, :1])


def test_merging_nothing_changes_nothing(backend, dtype, generator):
    x = torch.randn(2, 9, 8, generator=generator).to(dtype)
    source_map, kept, _ = bipartite_match(x, 0)
    merged, sizes = merge_tokens(x, source_map, 9)
    assert torch.equal(merged, x)
    assert sizes.eq(1).all()
    assert kept.tolist() == [list(range(9))] * 2


def test_a_nan_spoils_only_its_row(backend):
    x = torch.ones(1, 4, 3)
    x[0, 1] = float("nan")
    merged, _ = merge_tokens(x, torch.tensor([[0, 1, 1, 2]]), 3)
    assert merged[0, 1].isnan().all()
    assert merged[0, [0, 2]].eq(1).all()


@pytest.mark.parametrize("capacity_share", [0.0, 0.2, 1.0])
def test_compact_against_a_loop(backend, shape, dtype, layout, generator, capacity_share):
    frames, tokens, _ = shape
    x = layout(torch.randn(shape, generator=generator).to(dtype))
    keep = torch.rand(frames, tokens, generator=generator) > 0.5
    capacity = int(capacity_share * frames * tokens)
    packed, indices, counts = compact_tokens(x, keep, capacity)
    marked = keep.flatten().nonzero()[:, 0][:capacity]
    assert counts.tolist() == keep.sum(1).tolist()
    assert indices.dtype == counts.dtype == torch.int32
    assert indices.tolist() == marked.tolist() + [-1] * (capacity - len(marked))
    assert torch.equal(packed[: len(marked)], x.flatten(0, 1)[marked])
    assert packed[len(marked) :].eq(0).all()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8), (2, 4, 0)])
def test_empty_inputs(backend, shape):
    x = torch.empty(shape)
    batch, tokens, channels = shape
    source_map, kept, _ = bipartite_match(x, tokens // 2)
    assert kept.shape == (batch, tokens - tokens // 2)
    merged, sizes = merge_tokens(x, source_map, tokens)
    assert (merged.shape, sizes.shape) == ((batch, tokens, channels), (batch, tokens))
    packed, _, counts = compact_tokens(x, torch.ones(batch, tokens) > 0, batch * tokens)
    assert packed.shape == (batch * tokens, channels)
    assert counts.tolist() == [tokens] * batch


X, MAP, KEEP = torch.ones(2, 5, 4), torch.zeros(2, 5, dtype=torch.int32), torch.ones(2, 5) > 0


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bipartite_match(X, 3), ValueError, r"r must be between 0 and 2 \(half of the unprotected"),
        (lambda: bipartite_match(X, 2, protected=2), ValueError, "r must be between 0 and 1"),
        (lambda: bipartite_match(X, 0, protected=6), ValueError, "protected must be between 0 and 5"),
        (lambda: bipartite_match(X[0], 1), ValueError, "metric must have 3 dimensions"),
        (lambda: merge_tokens(X, MAP[:, :4], 2), ValueError, r"source_map must have shape \(2, 5\)"),
        (lambda: merge_tokens(X, MAP.float(), 2), TypeError, "indices must be int32 or int64"),
        (lambda: merge_tokens(X, MAP + 2, 2), ValueError, "got 2"),
        (lambda: merge_tokens(X, MAP, -1), ValueError, r"count must be between 0 and 5 \(tokens\), got -1"),
        (lambda: merge_tokens(X, MAP, 2, sizes=MAP), TypeError, "sizes must be float32"),
        (lambda: compact_tokens(X, KEEP, 11), ValueError, "capacity must be between 0 and 10"),
        (lambda: compact_tokens(X, MAP, 1), TypeError, "keep must be a bool mask"),
        (lambda: compact_tokens(X, KEEP[:1], 1), ValueError, r"keep must have shape \(2, 5\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
