# SPDX-License-Identifier: Apache-2.0
"""What holds for the whole test process."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import stc_kernels

# On a machine without a GPU, Triton's interpreter runs its kernels. It is chosen by a variable
# that must be set before anything imports Triton, for the whole process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def draw_anew(name: str) -> None:
    """Begin every generator of random numbers anew, so that no test depends on those before it."""
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef) -> None:
    draw_anew(fixturedef.argname)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    draw_anew(item.nodeid)


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without its interpreter, Triton cannot run on a CPU; users do not have it there."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("STC_KERNELS_BACKEND", raising=False)
    stc_kernels.available_backends.cache_clear()
    yield
    monkeypatch.undo()
    stc_kernels.available_backends.cache_clear()
