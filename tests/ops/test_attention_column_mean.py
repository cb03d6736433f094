# SPDX-License-Identifier: Apache-2.0
"""attention_column_mean."""

from __future__ import annotations

import pytest
import torch

from stc_kernels import attention_column_mean

OP = "attention_column_mean"
# batch, queries, keys, heads, heads of keys, channels of a head
CASES = [
    (1, 1, 1, 1, 1, 8),
    (2, 1, 33, 2, 2, 64),
    (1, 300, 40, 2, 1, 72),
    (1, 7, 70, 4, 2, 5),
    (2, 33, 65, 3, 3, 37),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case)))
@pytest.mark.parametrize("scale", [None, 0.7])
def test_matches_float64(backend, case, dtype, layout, scale, generator):
    batch, queries, tokens, heads, groups, width = case
    query = layout(torch.randn(batch, queries, heads, width, generator=generator).to(dtype))
    key = layout(torch.randn(batch, tokens, groups, width, generator=generator).to(dtype))
    received = attention_column_mean(query, key, scale=scale)
    assert received.dtype == torch.float32
    keys = key.double().repeat_interleave(heads // groups, dim=2)
    logits = torch.einsum("bihd,bjhd->bhij", query.double(), keys)
    expected = (logits * (width**-0.5 if scale is None else scale)).softmax(-1).mean((1, 2))
    torch.testing.assert_close(received.double(), expected, atol=1e-6, rtol=2e-5)


def test_rows_sum_to_one_and_heads_may_be_permuted(backend, generator):
    query, key = (torch.randn(2, 19, 4, 16, generator=generator) for _ in range(2))
    received = attention_column_mean(query, key)
    torch.testing.assert_close(received.sum(1), torch.ones(2))
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        attention_column_mean(query[:, :, order], key[:, :, order]), received
    )


def test_large_logits_do_not_overflow(backend):
    query = torch.full((1, 3, 1, 4), 100.0)
    key = torch.cat([query, -query], dim=1)
    expected = torch.tensor([[1 / 3] * 3 + [0.0] * 3])
    torch.testing.assert_close(attention_column_mean(query, key), expected)


def test_a_nan_stays_in_its_frame(backend):
    query, key = torch.ones(2, 3, 1, 4), torch.ones(2, 5, 1, 4)
    key[1, 2, 0, 1] = float("nan")
    received = attention_column_mean(query, key)
    torch.testing.assert_close(received[0], torch.full((5,), 0.2))
    assert received[1].isnan().all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # zeros * inf
@pytest.mark.parametrize("queries", [3, 70])
def test_an_infinite_key_that_no_query_wants_receives_nothing(backend, dtype, queries):
    """Not the NaN of the zeros that fill up the last tile of queries."""
    query, key = -torch.ones(1, queries, 1, 8), torch.ones(1, 5, 1, 8)
    key[0, 2, 0, 3] = float("inf")
    expected = torch.tensor([[0.25, 0.25, 0.0, 0.25, 0.25]])
    received = attention_column_mean(query.to(dtype), key.to(dtype))
    torch.testing.assert_close(received, expected)


def test_empty_inputs(backend):
    assert attention_column_mean(torch.ones(2, 3, 1, 4), torch.ones(2, 0, 1, 4)).shape == (2, 0)
    assert attention_column_mean(torch.ones(0, 3, 1, 4), torch.ones(0, 5, 1, 4)).shape == (0, 5)
    uniform = attention_column_mean(torch.ones(1, 2, 1, 0), torch.ones(1, 4, 1, 0))
    torch.testing.assert_close(uniform, torch.full((1, 4), 0.25))


Q, K = torch.ones(2, 3, 4, 8), torch.ones(2, 5, 2, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attention_column_mean(Q[:, :0], K), ValueError, "at least one token, got 0"),
        (lambda: attention_column_mean(Q[:, :, :3], K), ValueError, "3 heads of query must be a multiple"),
        (lambda: attention_column_mean(Q, K[..., :7]), ValueError, "key must have shape"),
        (lambda: attention_column_mean(Q, K[:1]), ValueError, "key must have shape"),
        (lambda: attention_column_mean(Q, K.half()), TypeError, "dtype of query"),
        (lambda: attention_column_mean(Q[0], K), ValueError, "query must have 4 dimensions"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
