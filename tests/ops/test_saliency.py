# SPDX-License-Identifier: Apache-2.0
"""channel_variance and saliency_topk."""

from __future__ import annotations

import oracles
import pytest
import torch

from stc_kernels import channel_variance, saliency_topk

METHODS = ["gaussian", "dual_anchor"]


def test_channel_variance(backend, shape, dtype, layout, generator):
    tokens = layout((3 + torch.randn(shape, generator=generator)).to(dtype))
    variance = channel_variance(tokens)
    assert variance.dtype == torch.float32
    expected = tokens.double().flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(variance.double(), expected, atol=1e-6, rtol=2e-5)


def test_variance_of_values_far_from_zero(backend):
    """A mean of a thousand times the deviation must not cancel the digits away."""
    tokens = 1000 + torch.randn(4, 300, 33, generator=torch.Generator().manual_seed(0))
    expected = tokens.double().flatten(0, 1).var(0, unbiased=False)
    torch.testing.assert_close(channel_variance(tokens).double(), expected, atol=0, rtol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("with_memory", [False, True], ids=["no-memory", "memory"])
@pytest.mark.parametrize("with_channels", [False, True], ids=["all-channels", "half"])
def test_saliency_matches_float64(
    backend, shape, dtype, layout, generator, method, with_memory, with_channels
):
    tokens = layout((0.5 + torch.randn(shape, generator=generator)).to(dtype))
    width = shape[2]
    memory = torch.randn(width, generator=generator) if with_memory else None
    channels = torch.arange(width) % 2 == 0 if with_channels else None
    k = max(1, shape[1] // 3)
    indices, scores = saliency_topk(tokens, memory, k, method=method, alpha=0.3, channels=channels)
    assert indices.shape == (shape[0], k)
    assert indices.dtype == torch.int32
    expected = oracles.saliency(tokens, memory, method, 0.3, channels)
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)
    for row, frame in zip(indices, expected, strict=True):
        oracles.assert_selects(row, (-frame).tolist(), k, slack=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_k_of_all_tokens_keeps_every_one(backend, method):
    tokens = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(0))
    indices, _ = saliency_topk(tokens, None, 9, method=method)
    assert indices.tolist() == [list(range(9))] * 2


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_is_kept_and_a_twin_of_both_anchors_is_not(backend, method):
    tokens = torch.zeros(1, 8, 4)
    tokens[..., 0] = 1.0
    tokens[0, 5] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    memory = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert saliency_topk(tokens, memory, 1, method=method)[0].tolist() == [[5]]


@pytest.mark.parametrize("method", METHODS)
def test_alpha_chooses_the_anchor(backend, method, generator):
    tokens = torch.randn(2, 20, 16, generator=generator)
    memory = torch.randn(16, generator=generator)
    other = torch.randn(16, generator=generator)
    without = saliency_topk(tokens, memory, 5, method=method, alpha=0.0)
    assert torch.equal(without[0], saliency_topk(tokens, other, 5, method=method, alpha=0.0)[0])
    only = saliency_topk(tokens, memory, 5, method=method, alpha=1.0)[1]
    alone = torch.cat([saliency_topk(tokens[:, n, None], memory, 1, method=method, alpha=1.0)[1]
                       for n in range(20)], dim=1)  # fmt: skip
    torch.testing.assert_close(only, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_equal_tokens_tie_to_the_lower_index(backend, method):
    tokens = torch.ones(2, 7, 5)
    assert saliency_topk(tokens, torch.ones(5), 3, method=method)[0].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("method", METHODS)
def test_a_nan_frame_does_not_spoil_another(backend, dtype, method):
    tokens = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    clean = saliency_topk(tokens, None, 2, method=method)[0]
    tokens[1, 3, 2] = float("nan")
    indices, scores = saliency_topk(tokens, None, 2, method=method)
    assert torch.equal(indices[0], clean[0])
    assert scores[1].isnan().any()
    assert indices[1].unique().numel() == 2
    assert int(indices.min()) >= 0


@pytest.mark.parametrize("method", METHODS)
def test_zero_tokens_have_a_score(backend, method):
    tokens = torch.zeros(1, 4, 8)
    tokens[0, 1] = 1.0
    assert saliency_topk(tokens, torch.zeros(8), 2, method=method)[1].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
def test_empty_inputs(backend, shape):
    k = min(2, shape[1])
    indices, scores = saliency_topk(torch.empty(shape), None, k)
    assert indices.shape == (shape[0], k)
    assert scores.shape == shape[:2]


TOKENS, MEMORY = torch.ones(2, 5, 4), torch.ones(4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: saliency_topk(TOKENS, None, 0), ValueError, r"k must be between 1 and 5 \(tokens\), got 0"),
        (lambda: saliency_topk(TOKENS, None, 6), ValueError, "got 6"),
        (lambda: saliency_topk(TOKENS, MEMORY[:3], 2), ValueError, r"memory must have shape \(4,\)"),
        (lambda: saliency_topk(TOKENS, MEMORY.double(), 2), TypeError, "memory must be float32"),
        (lambda: saliency_topk(TOKENS, None, 2, method="best"), ValueError, "gaussian, dual_anchor, got 'best'"),
        (lambda: saliency_topk(TOKENS, None, 2, alpha=1.5), ValueError, "alpha must be between 0 and 1"),
        (lambda: saliency_topk(TOKENS, None, 2, channels=MEMORY), TypeError, "bool mask"),
        (lambda: saliency_topk(TOKENS, None, 2, channels=MEMORY[:3].bool()), ValueError, "channels must have shape"),
        (lambda: saliency_topk(TOKENS[0], None, 2), ValueError, "3 dimensions"),
        (lambda: channel_variance(TOKENS[:0]), ValueError, "at least one token"),
        (lambda: channel_variance(TOKENS.long()), TypeError, "tokens must be float32"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
