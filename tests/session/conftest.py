# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests with a small LLaVA-OneVision."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tiny_llava import make_model, make_tokenizer

from stc_video import StreamingSession


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return make_model()


@pytest.fixture
def open_session(model) -> Iterator[Callable[..., StreamingSession]]:
    """Makes sessions and closes them; without cacher and pruner unless asked for."""
    made: list[StreamingSession] = []

    def make(memory, *, cls=StreamingSession, **settings) -> StreamingSession:
        settings = {"cache": None, "prune": "none", **settings}
        made.append(cls(model, make_tokenizer(), memory=memory, **settings))
        return made[-1]

    yield make
    for session in made:
        session.close()
