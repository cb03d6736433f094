# SPDX-License-Identifier: Apache-2.0
"""Small engines, each made once."""

from __future__ import annotations

import pytest
from small_engine import Engine
from vllm_checkpoints import NAMES, make_checkpoint


@pytest.fixture(scope="session", params=NAMES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = make_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    return Engine(request.param, str(folder))
