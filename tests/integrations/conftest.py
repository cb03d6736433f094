# SPDX-License-Identifier: Apache-2.0
"""The projects, each as our stand-in and, where they are at hand, of the authors' own files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import upstream_models
from projects import APPLY, KINDS, RUN, UPSTREAM, Project
from stand_ins import SIZE, stand_in
from upstream import NotAtHandError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


@pytest.fixture(params=KINDS, ids=lambda kind: "-".join(kind))
def project(request: pytest.FixtureRequest) -> Iterator[Project]:
    """Each project in turn, from our stand-in and from the authors' files."""
    name, origin = request.param
    apply, run = APPLY[name], RUN[name]
    if origin == "stand-in":
        tokens = 64 if name == "streamforest" else 16
        yield Project(name, stand_in(name), apply, run, SIZE, tokens)
        return
    made = getattr(upstream_models, name)()
    try:
        model = made.__enter__()
    except NotAtHandError as reason:
        pytest.skip(str(reason))
    yield Project(name, model, apply, run, *UPSTREAM[name])
    made.__exit__(None, None, None)
