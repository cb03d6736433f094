# SPDX-License-Identifier: Apache-2.0
"""sparse_query_attention."""

from __future__ import annotations

import oracles
import pytest
import torch

from stc_kernels import sparse_query_attention

OP = "sparse_query_attention"
# batch, queries, keys, heads, heads of keys, channels of a head
CASES = [
    (1, 1, 1, 1, 1, 8),
    (2, 5, 33, 2, 2, 64),
    (1, 17, 40, 2, 1, 72),
    (1, 3, 70, 4, 2, 80),
    (1, 33, 65, 1, 1, 128),
    (1, 4, 9, 1, 1, 37),
]
ROUNDING = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


@pytest.fixture(params=CASES, ids=lambda case: "x".join(map(str, case)))
def tensors(request, dtype, layout, generator):
    batch, queries, tokens, heads, groups, width = request.param

    def random(*shape):
        return layout(torch.randn(shape, generator=generator).to(dtype))

    return (
        random(batch, queries, heads, width),
        random(batch, tokens, groups, width),
        random(batch, tokens, groups, width),
    )


@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
def test_attention_matches_float64(backend, tensors, biased, generator):
    query, key, value = tensors
    bias = None
    if biased:
        bias = torch.randn(key.shape[:2], generator=generator)
        bias[:, ::3] = -torch.inf
        bias[:, 0] = 0.5
    out = sparse_query_attention(query, key, value, key_bias=bias)
    assert out.is_contiguous()
    assert (out.dtype, out.shape) == (query.dtype, query.shape)
    expected = oracles.attention(query, key, value, query.shape[-1] ** -0.5, bias)
    rounding = ROUNDING[query.dtype]
    torch.testing.assert_close(out.double(), expected, atol=2 * rounding, rtol=rounding)


def test_scale_is_a_factor_of_the_logits(backend, generator):
    query, key, value = (torch.randn(1, 4, 2, 16, generator=generator) for _ in range(3))
    torch.testing.assert_close(
        sparse_query_attention(query, key, value, scale=0.5),
        sparse_query_attention(0.5 * query, key, value, scale=1.0),
    )
    uniform = sparse_query_attention(query, key, value, scale=0.0)
    torch.testing.assert_close(uniform, value.mean(1, keepdim=True).expand_as(uniform))


def test_large_logits_do_not_overflow(backend, generator):
    query, key, value = (torch.randn(1, 4, 1, 16, generator=generator) for _ in range(3))
    out = sparse_query_attention(100 * query, 100 * key, value)
    nearest = torch.einsum("bkhd,bnhd->bkhn", query, key).argmax(-1)[0, :, 0]
    torch.testing.assert_close(out[0, :, 0], value[0, nearest, 0])


def test_a_query_with_nothing_to_attend_to_gets_zeros(backend, dtype):
    query = torch.ones(2, 3, 1, 16, dtype=dtype)
    bias = torch.zeros(2, 4)
    bias[1] = -torch.inf
    key = value = torch.ones(2, 4, 1, 16, dtype=dtype)
    out = sparse_query_attention(query, key, value, key_bias=bias)
    assert out[0].eq(1).all()
    assert out[1].eq(0).all()
    assert sparse_query_attention(query, key[:, :0], value[:, :0]).eq(0).all()


def test_nan_reaches_only_the_queries_it_concerns(backend, dtype):
    query = torch.ones(2, 3, 1, 16, dtype=dtype)
    key = value = torch.ones(2, 4, 1, 16, dtype=dtype)
    query[0, 1, 0, 2] = float("nan")
    out = sparse_query_attention(query, key, value)
    assert out[0, 1].isnan().all()
    assert out[0, 0].eq(1).all()
    assert out[1].eq(1).all()


@pytest.mark.parametrize("shape", [(0, 3, 1, 16), (2, 0, 1, 16), (2, 3, 0, 16)])
def test_empty_inputs(backend, shape):
    batch, _, heads, width = shape
    if heads == 0:
        with pytest.raises(ValueError, match="divides 0"):
            sparse_query_attention(torch.empty(shape), torch.empty(shape), torch.empty(shape))
        return
    key = torch.ones(batch, 5, heads, width)
    assert sparse_query_attention(torch.ones(shape), key, key).shape == shape


Q, K = torch.ones(2, 3, 4, 16), torch.ones(2, 5, 2, 16)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sparse_query_attention(Q, K[:1], K[:1]), ValueError, r"key must have shape \(2, 5, 2, 16\)"),
        (lambda: sparse_query_attention(Q, K, K[:, :4]), ValueError, r"value must have shape \(2, 5, 2, 16\)"),
        (lambda: sparse_query_attention(Q[:, :, :3], K, K), ValueError, r"divides 3 \(heads of query\), got 2"),
        (lambda: sparse_query_attention(Q.half(), K, K), TypeError, "dtype of query"),
        (lambda: sparse_query_attention(Q[0], K, K), ValueError, "query must have 4 dimensions"),
        (lambda: sparse_query_attention(Q, K, K, scale=float("inf")), ValueError, "scale must be finite"),
        (lambda: sparse_query_attention(Q, K, K, key_bias=torch.zeros(5)), ValueError, "key_bias must have 2 dimensions"),
        (lambda: sparse_query_attention(Q, K, K, key_bias=torch.zeros(2, 4)), ValueError, r"key_bias must have shape \(2, 5\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
