# SPDX-License-Identifier: Apache-2.0
"""The package of the Hugging Face Hub, loaded by the `kernels` package from a local folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import stc_kernels

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def hub_package(tmp_path: Path):
    script = ROOT / "tools" / "hub_package.py"
    done = subprocess.run(
        [sys.executable, script, tmp_path / "stc-kernels"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return tmp_path / "stc-kernels"


def test_nothing_in_it_imports_an_installed_package(hub_package):
    for path in hub_package.rglob("*.py"):
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("from stc_kernels", "import stc_kernels")), path


def test_it_loads_beside_the_installed_package(hub_package):
    kernels = pytest.importorskip("kernels", reason="pip install kernels")
    module = kernels.get_local_kernel(hub_package, backend="cpu")
    assert module.__name__ != "stc_kernels"
    assert module._schemas.NAMESPACE != stc_kernels._schemas.NAMESPACE
    current, before = torch.randn(2, 40, 16), torch.randn(40, 16)
    with module.use_backend("reference"), stc_kernels.use_backend("reference"):
        ours = module.select_changed(current, before, 9)
        theirs = stc_kernels.select_changed(current, before, 9)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
