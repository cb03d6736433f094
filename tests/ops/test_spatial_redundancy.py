# SPDX-License-Identifier: Apache-2.0
"""spatial_redundancy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stc_kernels import spatial_redundancy

OP = "spatial_redundancy"
GRIDS = [(1, 1, 1, 3), (2, 1, 7, 8), (1, 6, 1, 17), (3, 5, 4, 33), (1, 3, 9, 1153)]


def oracle(tokens: Tensor, alive: Tensor | None) -> Tensor:
    x = tokens.double()
    frames, height, width, _ = x.shape
    out = torch.full(x.shape[:3], -math.inf, dtype=torch.float64)
    for f in range(frames):
        for i in range(height):
            for j in range(width):
                for a, b in ((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)):
                    inside = 0 <= a < height and 0 <= b < width
                    if inside and (alive is None or alive[f, a, b]):
                        norms = max(float(x[f, i, j].norm()), 1e-8)
                        norms *= max(float(x[f, a, b].norm()), 1e-8)
                        out[f, i, j] = max(out[f, i, j], x[f, i, j] @ x[f, a, b] / norms)
    return out


@pytest.mark.parametrize("shape", GRIDS, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize("masked", [False, True], ids=["all", "some-dead"])
def test_matches_float64(backend, shape, dtype, layout, masked, generator):
    tokens = layout((0.3 + torch.randn(shape, generator=generator)).to(dtype))
    alive = torch.rand(shape[:3], generator=generator) > 0.4 if masked else None
    redundancy = spatial_redundancy(tokens, alive)
    assert redundancy.dtype == torch.float32
    torch.testing.assert_close(redundancy.double(), oracle(tokens, alive), atol=5e-6, rtol=0)


def test_without_a_living_neighbour_nothing_is_redundant(backend):
    tokens = torch.ones(1, 3, 3, 4)
    alive = torch.zeros(1, 3, 3, dtype=torch.bool)
    assert spatial_redundancy(tokens, alive).eq(-math.inf).all()
    alive[0, 1, 1] = True
    seen = [[-math.inf, 1.0, -math.inf], [1.0, -math.inf, 1.0], [-math.inf, 1.0, -math.inf]]
    torch.testing.assert_close(spatial_redundancy(tokens, alive), torch.tensor([seen]))
    assert spatial_redundancy(tokens[:, :1, :1]).item() == -math.inf


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_token_is_not_redundant_and_supports_no_neighbour(backend, dtype, bad):
    tokens = torch.ones(1, 1, 4, 8, dtype=dtype)
    tokens[0, 0, 1, 3] = bad
    expected = torch.tensor([[[-math.inf, -math.inf, 1.0, 1.0]]])
    torch.testing.assert_close(spatial_redundancy(tokens), expected)


def test_a_zero_token_has_cosine_zero(backend):
    tokens = torch.zeros(1, 2, 2, 4)
    tokens[0, 0, 0] = 1.0
    assert spatial_redundancy(tokens).eq(0).all()


@pytest.mark.parametrize("shape", [(0, 2, 2, 4), (1, 0, 3, 4), (1, 3, 0, 4), (1, 2, 2, 0)])
def test_empty_inputs(backend, shape):
    redundancy = spatial_redundancy(torch.empty(shape))
    assert redundancy.shape == shape[:3]
    assert redundancy.eq(0).all()


GRID = torch.ones(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: spatial_redundancy(GRID[0]), ValueError, "tokens must have 4 dimensions"),
        (lambda: spatial_redundancy(GRID.double()), TypeError, "tokens must be float32"),
        (lambda: spatial_redundancy(GRID, GRID[..., 0]), TypeError, "alive must be a bool mask"),
        (lambda: spatial_redundancy(GRID, GRID[0, ..., 0] > 0), ValueError, r"alive must have shape \(2, 3, 4\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(backend, call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
