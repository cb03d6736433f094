# SPDX-License-Identifier: Apache-2.0
"""The C++ tests of csrc/tests, configured and run as CMake users do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_host_logic_of_the_kernels(tmp_path):
    bin_directory = Path(sys.executable).parent
    cmake = shutil.which("cmake") or shutil.which("cmake", path=str(bin_directory))
    if cmake is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("CMake or a C++ compiler is missing")
    ctest = Path(cmake).with_name("ctest")
    configure = [cmake, "-S", ROOT, "-B", tmp_path, "-DSTC_BUILD_TESTS=ON"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", f"-DSTC_OUTPUT_DIR={tmp_path}"]
    build = [cmake, "--build", tmp_path, "--target", "host_logic"]
    for command in (configure, build, [ctest, "--test-dir", tmp_path, "--output-on-failure"]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
