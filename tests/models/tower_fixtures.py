# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with real Hugging Face towers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_towers import make_tower

import stc_kernels
from stc_video.cacher import weight_watch


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def watched_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the weights of a tiny tower in every call, as at those of a large one."""
    monkeypatch.setattr(weight_watch, "LARGE_BYTES", 0)


@pytest.fixture(params=["reference", "native"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test once per backend of the operators that exists here."""
    if request.param not in (backends := stc_kernels.available_backends("token_cosine")):
        pytest.skip(backends.unavailable[request.param])
    with stc_kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def siglip() -> torch.nn.Module:
    return make_tower("siglip")
