# SPDX-License-Identifier: Apache-2.0
"""gather_rows, scatter_rows_, gather_layer_norm, scatter_residual."""

from __future__ import annotations

import oracles
import pytest
import torch
from operands import random_indices

from stc_kernels import gather_layer_norm, gather_rows, scatter_residual, scatter_rows_

ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture
def case(shape, dtype, layout, generator):
    """x (B, N, C) in some layout and indices (B, K) with a hole."""
    x = layout(torch.randn(shape, generator=generator).to(dtype))
    indices = random_indices(shape[0], shape[1], (shape[1] + 1) // 2, generator)
    return x, indices


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_gather_rows(backend, case, index_dtype):
    x, indices = case
    rows = gather_rows(x, indices.to(index_dtype))
    assert rows.is_contiguous()
    assert torch.equal(rows, oracles.gather(x, indices))


def test_scatter_rows_writes_only_the_named_rows(backend, case, layout, generator):
    x, indices = case
    rows = layout(torch.randn((*indices.shape, x.shape[2]), generator=generator).to(x.dtype))
    storage = torch.tensor([], dtype=x.dtype).set_(x.untyped_storage())
    outside = storage.clone()
    outside_view = torch.as_strided(outside, x.shape, x.stride(), x.storage_offset())
    expected = oracles.scatter(x, indices, rows)
    version = x._version
    assert scatter_rows_(x, indices, rows) is x
    assert torch.equal(x, expected)
    assert x._version > version, "autograd and compile must see the mutation"
    # Everything around the view is as before.
    outside_view.copy_(expected)
    assert torch.equal(storage, outside)


@pytest.mark.parametrize("parameters", ["both", "weight", "none"])
def test_gather_layer_norm(backend, case, parameters, generator):
    x, indices = case
    channels = x.shape[2]
    weight = torch.randn(channels, generator=generator) if parameters != "none" else None
    bias = torch.randn(channels, generator=generator) if parameters == "both" else None
    rows = gather_layer_norm(x, indices, weight, bias, 1e-6)
    assert rows.dtype == x.dtype
    expected = oracles.layer_norm(oracles.gather(x, indices), weight, bias, 1e-6)
    expected[indices < 0] = 0.0
    torch.testing.assert_close(
        rows.double(), expected, atol=4 * ROUNDING[x.dtype], rtol=ROUNDING[x.dtype]
    )
    assert rows[indices < 0].eq(0).all()


def test_layer_norm_of_values_far_from_zero(backend):
    """The variance must not be a difference of large squares."""
    x = 1e4 + torch.randn(1, 4, 256, generator=torch.Generator().manual_seed(0))
    indices = torch.arange(4, dtype=torch.int32)[None]
    torch.testing.assert_close(
        gather_layer_norm(x, indices, None, None, 1e-6).double(),
        oracles.layer_norm(x, None, None, 1e-6),
        atol=2e-3,
        rtol=0,
    )


@pytest.mark.parametrize("shared", [False, True], ids=["per-frame", "shared"])
def test_scatter_residual(backend, case, shared, layout, generator):
    base, indices = case
    update = layout(torch.randn(base.shape, generator=generator).to(base.dtype))
    update = update[0] if shared else update
    rows = layout(torch.randn((*indices.shape, base.shape[2]), generator=generator).to(base.dtype))
    before = base.clone()
    out = scatter_residual(base, update, indices, rows)
    replaced = oracles.scatter(update.expand(base.shape), indices, rows)
    expected = (base.double() + replaced.double()).to(base.dtype)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=ROUNDING[base.dtype] / 2)
    assert torch.equal(base, before)


@pytest.mark.parametrize(
    ("shape", "count"), [((0, 5, 8), 2), ((2, 5, 8), 0), ((2, 5, 0), 2), ((2, 0, 8), 0)]
)
def test_empty_inputs(backend, shape, count):
    x = torch.ones(shape)
    indices = torch.zeros((shape[0], count), dtype=torch.int32)
    if count == 2:
        indices[:, 1] = 1
    rows = torch.zeros((shape[0], count, shape[2]))
    assert gather_rows(x, indices).shape == rows.shape
    assert gather_layer_norm(x, indices, None, None, 1e-5).shape == rows.shape
    assert scatter_residual(x, x, indices, rows).shape == shape
    assert scatter_rows_(x.clone(), indices, rows).shape == shape


def test_minus_one_among_no_tokens(backend):
    indices = torch.full((2, 3), -1, dtype=torch.int32)
    assert torch.equal(gather_rows(torch.ones(2, 0, 4), indices), torch.zeros(2, 3, 4))


def test_nan_rows_do_not_leak(backend, dtype):
    x = torch.ones(1, 4, 8, dtype=dtype)
    x[0, 2] = float("nan")
    indices = torch.tensor([[0, -1, 3]], dtype=torch.int32)
    assert gather_rows(x, indices).isfinite().all()
    assert gather_layer_norm(x, indices, None, None, 1e-6).isfinite().all()
    update = torch.full((4, 8), float("nan"), dtype=dtype)
    replaced = torch.tensor([[1]], dtype=torch.int32)
    out = scatter_residual(torch.ones_like(x), update, replaced, torch.ones(1, 1, 8, dtype=dtype))
    assert out[0, 1].eq(2).all()
    assert out[0, 0].isnan().all()


@pytest.mark.parametrize("wrong", [5, -2])
def test_an_index_out_of_range_raises_and_writes_nothing(backend, wrong):
    x = torch.zeros(1, 5, 4)
    indices = torch.tensor([[0, wrong]])
    rows = torch.ones(1, 2, 4)
    sentence = f"between 0 and 4.*got {wrong}"
    with pytest.raises(Exception, match=sentence):
        gather_rows(x, indices)
    with pytest.raises(Exception, match=sentence):
        scatter_rows_(x, indices, rows)
    with pytest.raises(Exception, match=sentence):
        gather_layer_norm(x, indices, None, None, 1e-6)
    with pytest.raises(Exception, match=sentence):
        scatter_residual(x, x, indices, rows)
    assert x.eq(0).all()


X, INDICES, ROWS = torch.ones(2, 5, 4), torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gather_rows(X[0], INDICES), ValueError, "x must have 3 dimensions"),
        (lambda: gather_rows(X.int(), INDICES), TypeError, "x must be float32"),
        (lambda: gather_rows(X, INDICES.float()), TypeError, "indices must be int32 or int64"),
        (lambda: gather_rows(X, INDICES[:1]), ValueError, r"as many rows as the batch \(2\), got 1"),
        (lambda: gather_rows(X, INDICES[0]), ValueError, "indices must have 2 dimensions"),
        (lambda: gather_rows(X, INDICES.to("meta")), ValueError, "device of x"),
        (lambda: gather_rows(X, INDICES + 5), ValueError, r"indices must be between 0 and 4 .* got 5"),
        (lambda: scatter_rows_(X.clone(), INDICES - 2, ROWS), ValueError, r"between 0 and 4 .* got -2"),
        (lambda: scatter_rows_(X, INDICES, ROWS[..., :3]), ValueError, "rows must have shape"),
        (lambda: scatter_rows_(X, INDICES, ROWS.half()), TypeError, "dtype of x"),
        (lambda: gather_layer_norm(X, INDICES, X[0, 0, :3], None, 1e-6), ValueError, "weight must have shape"),
        (lambda: gather_layer_norm(X, INDICES, None, None, -1.0), ValueError, "eps must be at least 0"),
        (lambda: scatter_residual(X, X[:, :4], INDICES, ROWS), ValueError, "update must have shape"),
        (lambda: scatter_rows_(X.clone().requires_grad_(), INDICES, ROWS), RuntimeError, "inference only"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
