# SPDX-License-Identifier: Apache-2.0
"""Pruners under another default dtype of torch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from stc_video.pruners import PRUNERS, Attention, make_pruner


@pytest.fixture(params=[torch.float64, torch.bfloat16])
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    before = torch.get_default_dtype()
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", PRUNERS)
def test_it_changes_nothing(name: str, default_dtype: torch.dtype) -> None:
    settings = {} if name == "none" else {"tokens_per_frame": 5}
    features, heads = torch.randn(3, 16, 8), torch.randn(3, 16, 2, 4)
    more = {"attention": Attention(heads, heads)} if name == "visionzip" else {}
    expected = make_pruner(name, **settings)(features, (4, 4), **more)
    torch.set_default_dtype(default_dtype)
    found = make_pruner(name, **settings)(features, (4, 4), **more)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.tokens, expected.tokens)
