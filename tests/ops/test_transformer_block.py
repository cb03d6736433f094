# SPDX-License-Identifier: Apache-2.0
"""add_layer_norm, bias_gelu, scatter_key_value_."""

from __future__ import annotations

import oracles
import pytest
import torch
from operands import EMPTY_SHAPES, random_indices

from stc_kernels import add_layer_norm, bias_gelu, scatter_key_value_

OP = "add_layer_norm"
ROUNDING = {torch.float32: 3e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.mark.parametrize("parameters", ["all", "none"])
def test_add_layer_norm(backend, shape, dtype, layout, generator, parameters):
    base = layout(torch.randn(shape, generator=generator).to(dtype))
    update = layout(torch.randn(shape, generator=generator).to(dtype))
    weight, bias, scale = torch.randn(3, shape[2], generator=generator)
    if parameters == "none":
        weight = bias = scale = None
    total, normed = add_layer_norm(base, update, weight, bias, 1e-6, scale=scale)
    exact = base.double() + update.double() * (1.0 if scale is None else scale.double())
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(total.double(), exact, atol=1e-6, rtol=rounding)
    assert total.dtype == normed.dtype == dtype
    # The norm is of the rounded sum.
    expected = oracles.layer_norm(total, weight, bias, 1e-6)
    torch.testing.assert_close(normed.double(), expected, atol=4 * rounding, rtol=rounding)


@pytest.mark.parametrize("approximate", ["none", "tanh", "quick"])
@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
def test_bias_gelu(backend, shape, dtype, layout, generator, approximate, biased):
    x = layout((3 * torch.randn(shape, generator=generator)).to(dtype))
    bias = torch.randn(shape[2], generator=generator) if biased else None
    out = bias_gelu(x, bias, approximate=approximate)
    assert out.is_contiguous()
    expected = oracles.gelu(x.double() + (0.0 if bias is None else bias.double()), approximate)
    rounding = ROUNDING[dtype]
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=rounding)


@pytest.mark.parametrize("approximate", ["none", "tanh", "quick"])
def test_gelu_of_large_values(backend, approximate):
    x = torch.tensor([[[-1e4, -300.0, 0.0, 30.0, 1e4, float("nan")]]])
    out = bias_gelu(x, None, approximate=approximate)[0, 0]
    assert out[:5].tolist() == [0.0, 0.0, 0.0, 30.0, 1e4]
    assert out[5].isnan()


@pytest.mark.parametrize("biased", [False, True], ids=["no-bias", "bias"])
def test_scatter_key_value_from_one_projection(backend, shape, dtype, layout, generator, biased):
    batch, tokens, channels = shape
    indices = random_indices(batch, tokens, (tokens + 1) // 2, generator)
    caches = [layout(torch.randn(shape, generator=generator).to(dtype)) for _ in range(2)]
    # Key and value are parts of the rows of a fused projection, as in the encoder.
    fused = torch.randn((*indices.shape, 3 * channels), generator=generator).to(dtype)
    key, value = fused[..., channels : 2 * channels], fused[..., 2 * channels :]
    biases = torch.randn(2, channels, generator=generator) if biased else [None, None]
    expected = [
        oracles.scatter(cache, indices, rows if bias is None else (rows.float() + bias).to(dtype))
        for cache, rows, bias in zip(caches, (key, value), biases, strict=True)
    ]
    out = scatter_key_value_(*caches, indices, key, value, key_bias=biases[0], value_bias=biases[1])
    assert out[0] is caches[0]
    assert out[1] is caches[1]
    # Triton's interpreter cuts digits off where it should round to bfloat16.
    exact = not biased or dtype != torch.bfloat16 or backend != "triton"
    for cache, result in zip(caches, expected, strict=True):
        torch.testing.assert_close(cache, result, atol=0, rtol=0 if exact else 2**-7)


@pytest.mark.parametrize("index", [5, -2])
def test_an_index_out_of_range_raises_and_writes_nothing(backend, index):
    caches = torch.zeros(2, 1, 5, 4)
    indices, rows = torch.tensor([[0, index]], dtype=torch.int32), torch.ones(1, 2, 4)
    with pytest.raises(ValueError, match=f"`scatter_key_value_`.* got {index}"):
        scatter_key_value_(caches[0], caches[1], indices, rows, rows)
    assert caches.eq(0).all()


@pytest.mark.parametrize("shape", EMPTY_SHAPES)
def test_empty_inputs(backend, shape):
    x = torch.empty(shape)
    total, normed = add_layer_norm(x, x, None, None, 1e-6)
    assert total.shape == normed.shape == bias_gelu(x, None).shape == shape
    indices = torch.zeros((shape[0], 0), dtype=torch.int32)
    rows = torch.empty((shape[0], 0, shape[2]))
    scatter_key_value_(x, x.clone(), indices, rows, rows)


X, C = torch.ones(2, 5, 4), torch.ones(4)
AT, R = torch.zeros(2, 3, dtype=torch.int32), torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add_layer_norm(X, X[:, :4], C, C, 1e-6), ValueError, "update must have shape"),
        (lambda: add_layer_norm(X, X.half(), C, C, 1e-6), TypeError, "dtype of base"),
        (lambda: add_layer_norm(X, X, C[:3], C, 1e-6), ValueError, r"weight must have shape \(4,\)"),
        (lambda: add_layer_norm(X, X, C, C, 1e-6, scale=C[:2]), ValueError, "scale must have shape"),
        (lambda: add_layer_norm(X, X, C, C, -1.0), ValueError, "eps must be at least 0"),
        (lambda: bias_gelu(X, C[:3]), ValueError, "bias must have shape"),
        (lambda: bias_gelu(X, C, approximate="fast"), ValueError, "none, tanh, quick, got 'fast'"),
        (lambda: scatter_key_value_(X, X[:1], AT, R, R), ValueError, "value_cache must have shape"),
        (lambda: scatter_key_value_(X, X, AT[:1], R, R), ValueError, "indices must have as many rows"),
        (lambda: scatter_key_value_(X, X, AT, R, R[:, :2]), ValueError, "value must have shape"),
        (lambda: scatter_key_value_(X, X, AT, R, R, key_bias=C[:1]), ValueError, "key_bias must have shape"),
        (lambda: scatter_key_value_(X.clone().requires_grad_(), X, AT, R, R), RuntimeError, "inference only"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
