# SPDX-License-Identifier: Apache-2.0
"""A copy of the sources to build from, so that no test writes into the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging_tools import Run

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "csrc", "pyproject.toml")
SOURCES += ("python", "setup.py", "stc_kernels")
LEFT_OUT = shutil.ignore_patterns("*.so", "__pycache__", "_build_config.json", "*.egg-info")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    copy = tmp_path / "source"
    copy.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture
def run(source: Path) -> Run:
    """Run this interpreter in the copy, with a given build mode and environment."""

    def call(*arguments: object, mode: str | None = None, **extra: str):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STC_")}
        for name in ("PYTHONPATH", "CUDACXX", "TORCH_CUDA_ARCH_LIST"):
            environment.pop(name, None)
        environment.update({"STC_KERNELS_BUILD": mode} if mode is not None else {}, **extra)
        if extra.get("PATH"):
            environment.pop("CXX", None)
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True)

    return call


@pytest.fixture(scope="session")
def library() -> Path:
    """The compiled library of this environment."""
    from stc_kernels import _native

    if reason := _native.load():
        pytest.skip(reason)
    import stc_kernels._C as module

    return Path(module.__file__)
