# SPDX-License-Identifier: Apache-2.0
"""The library of this environment under another release of torch, which it was not built against.

STC_TEST_OTHER_PYTHON names an interpreter of the same version with that torch::

    STC_TEST_OTHER_PYTHON=other/bin/python pytest tests/packaging/test_other_torch.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging_tools import COMPARE

OTHER_PYTHON = os.environ.get("STC_TEST_OTHER_PYTHON")
GPU_REASON = """
import stc_kernels
print(stc_kernels.available_backends("token_cosine", "cuda").unavailable.get("native"))
"""

pytestmark = pytest.mark.skipif(OTHER_PYTHON is None, reason="STC_TEST_OTHER_PYTHON is not set")


@pytest.fixture
def other(library: Path, tmp_path: Path):
    """Run code in the other interpreter, which sees a copy of the package and nothing else."""
    package = Path(library).parent
    shutil.copytree(package, tmp_path / "stc_kernels", ignore=shutil.ignore_patterns("__pycache__"))

    def call(code: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment["PYTHONPATH"] = str(tmp_path)
        command = [str(OTHER_PYTHON), "-W", "ignore", "-c", code]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_every_operator_gives_the_reference_answer(other):
    assert other(COMPARE).strip()


def test_a_gpu_is_offered_or_refused_with_a_reason(other):
    reason = other(GPU_REASON).strip()
    known = ("None", "torch sees no GPU", "has no CUDA support", "built without CUDA kernels")
    assert any(text in reason for text in known), reason
