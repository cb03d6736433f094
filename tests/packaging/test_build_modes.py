# SPDX-License-Identifier: Apache-2.0
"""What setup.py decides, with and without a toolchain."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from packaging_tools import Run

NO_TORCH = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("hidden, as in an isolated build of pip")
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture
def no_tools(tmp_path: Path) -> Path:
    """A directory for PATH without any compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def build_py(run: Run, tmp_path: Path, **how: str):
    return run("setup.py", "-q", "build_py", "--build-lib", tmp_path / "lib", **how)


def record(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "lib/stc_kernels/_build_config.json").read_text())


def one_sentence(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("STC_KERNELS_BUILD")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    return lines[0]


def test_auto_without_a_compiler_is_pure_and_says_so(run, tmp_path, no_tools):
    done = build_py(run, tmp_path, mode="auto", PATH=str(no_tools))
    assert done.returncode == 0, done.stderr
    assert "building pure Python (auto: no C++ compiler was found: install g++" in done.stdout
    assert record(tmp_path)["native"] is False
    assert "no C++ compiler" in record(tmp_path)["reason"]


def test_cpu_without_a_compiler_stops(run, tmp_path, no_tools):
    done = build_py(run, tmp_path, mode="cpu", PATH=str(no_tools))
    assert done.returncode != 0
    assert "no C++ compiler was found: install g++" in one_sentence(done.stderr)


def test_cpu_with_a_compiler_that_cannot_compile_stops(run, tmp_path, no_tools):
    compiler = no_tools / "c++"
    compiler.write_text("#!/bin/sh\necho 'probe.cpp:1: fatal error: too old' >&2\nexit 1\n")
    compiler.chmod(0o755)
    search = f"{no_tools}:{Path(shutil.which('cmake') or '/usr/bin/cmake').parent}"
    done = build_py(run, tmp_path, mode="cpu", PATH=search)
    assert done.returncode != 0
    assert "cannot compile against Python and torch (probe.cpp:1: fatal" in one_sentence(
        done.stderr
    )


def test_cpu_without_cmake_stops(run, tmp_path, no_tools):
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    (no_tools / "c++").symlink_to(shutil.which("c++"))
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/cmake.py").touch()
    hidden = str(tmp_path / "hidden")
    done = build_py(run, tmp_path, mode="cpu", PATH=str(no_tools), PYTHONPATH=hidden)
    assert done.returncode != 0
    assert "CMake was not found: pip install cmake ninja" in one_sentence(done.stderr)


def test_cpu_with_an_old_torch_stops(run, tmp_path):
    fake = tmp_path / "fake"
    (fake / "torch").mkdir(parents=True)
    (fake / "torch/__init__.py").touch()
    (fake / "torch-2.9.1.dist-info").mkdir()
    (fake / "torch-2.9.1.dist-info/METADATA").write_text("Name: torch\nVersion: 2.9.1\n")
    done = build_py(run, tmp_path, mode="cpu", PYTHONPATH=str(fake))
    assert done.returncode != 0
    assert "torch 2.9.1 is too old to compile against" in one_sentence(done.stderr)


def test_the_torch_of_the_user_is_found_from_an_isolated_build(run, tmp_path):
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay/sitecustomize.py").write_text(NO_TORCH)
    done = build_py(run, tmp_path, mode="auto", PYTHONPATH=str(tmp_path / "overlay"))
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" not in done.stdout


def fake_nvcc(folder: Path, script: str) -> str:
    """An nvcc that knows three GPUs and otherwise does what the script says."""
    compiler = folder / "nvcc"
    known = 'if [ "$1" = --list-gpu-code ]; then echo sm_75; echo sm_80; echo sm_90; exit 0; fi'
    compiler.write_text(f"#!/bin/sh\n{known}\n{script}\n")
    compiler.chmod(0o755)
    return str(compiler)


needs_toolchain = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("cmake")), reason="no C++ compiler or CMake"
)


@needs_toolchain
def test_cuda_without_nvcc_stops(run, tmp_path):
    done = build_py(run, tmp_path, mode="cuda", CUDACXX=str(tmp_path / "nvcc"))
    assert done.returncode != 0
    assert "/nvcc, which is not there or cannot be run" in one_sentence(done.stderr)


@needs_toolchain
def test_auto_without_nvcc_builds_for_the_cpu_and_says_so(run, tmp_path):
    done = build_py(run, tmp_path, mode="auto", CUDACXX=str(tmp_path / "nvcc"))
    assert done.returncode == 0, done.stderr
    assert "building with native CPU kernels (auto:" in done.stdout
    assert "no CUDA kernels: CUDACXX is" in record(tmp_path)["reason"]
    assert record(tmp_path)["native"] is True


@needs_toolchain
def test_cuda_with_an_nvcc_that_cannot_compile_stops(run, tmp_path, no_tools):
    nvcc = fake_nvcc(no_tools, "echo 'error: unsupported GNU version' >&2; exit 1")
    done = build_py(run, tmp_path, mode="cuda", CUDACXX=nvcc)
    assert done.returncode != 0
    assert "cannot compile for sm_80 with" in one_sentence(done.stderr)
    assert "(error: unsupported GNU version)" in one_sentence(done.stderr)


@needs_toolchain
@pytest.mark.parametrize(
    ("own", "torchs", "expected"),
    [
        ("", "", "80,90+PTX"),  # those of the default list that this nvcc knows
        ("", "8.0;9.0a 12.0+PTX", "80,90a,120+PTX"),
        ("80,90", "8.6", "80,90"),
        # Images of torch name GPUs that are older than the kernels can be compiled for.
        ("", "7.0 7.5 8.0 9.0+PTX", "80,90+PTX"),
    ],
)
def test_architectures_come_from_the_first_variable_that_is_set(
    run, tmp_path, no_tools, own, torchs, expected
):
    variables = {"STC_KERNELS_CUDA_ARCHS": own, "TORCH_CUDA_ARCH_LIST": torchs}
    nvcc = fake_nvcc(no_tools, "exit 0")
    done = build_py(run, tmp_path, mode="cuda", CUDACXX=nvcc, **variables)
    assert done.returncode == 0, done.stderr
    assert f"{nvcc} for {expected})" in done.stdout


@needs_toolchain
def test_a_wrong_architecture_is_named(run, tmp_path, no_tools):
    nvcc = fake_nvcc(no_tools, "exit 0")
    done = build_py(run, tmp_path, mode="auto", CUDACXX=nvcc, TORCH_CUDA_ARCH_LIST="Hopper")
    assert done.returncode != 0
    assert "TORCH_CUDA_ARCH_LIST must be a list such as 80,90+PTX, got 'Hopper'" in done.stderr


@needs_toolchain
def test_an_architecture_that_is_too_old_is_named(run, tmp_path, no_tools):
    nvcc = fake_nvcc(no_tools, "exit 0")
    done = build_py(run, tmp_path, mode="auto", CUDACXX=nvcc, STC_KERNELS_CUDA_ARCHS="75,90")
    assert done.returncode != 0
    assert "STC_KERNELS_CUDA_ARCHS must name GPUs from sm_80 on, got '75,90'" in done.stderr
    done = build_py(run, tmp_path, mode="auto", CUDACXX=nvcc, TORCH_CUDA_ARCH_LIST="7.5")
    assert done.returncode == 0, done.stderr
    assert "TORCH_CUDA_ARCH_LIST=7.5 names no GPU from sm_80 on" in record(tmp_path)["reason"]


@needs_toolchain
def test_max_jobs_limits_what_is_compiled_at_once(run, tmp_path, no_tools):
    """With a CMake that builds nothing and writes down what it was told."""
    cmake = no_tools / "cmake"
    cmake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    cmake.chmod(0o755)
    search = f"{no_tools}:{os.environ['PATH']}"
    command = ("setup.py", "-q", "build_ext", "--build-lib", tmp_path / "lib")
    done = run(*command, mode="cpu", PATH=search, MAX_JOBS="3")
    assert done.returncode == 0, done.stderr
    configure, build = (tmp_path / "calls").read_text().splitlines()
    assert "-S" in configure.split()
    assert build.split()[-2:] == ["-j", "3"]
    done = run(*command, mode="cpu", PATH=search, MAX_JOBS="all")
    assert done.returncode != 0
    assert "MAX_JOBS must be at least 1 (files compiled at once), got 'all'" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_mode_names_the_modes(run, tmp_path):
    done = build_py(run, tmp_path, mode="gpu")
    assert done.returncode != 0
    assert "must be one of auto, cpu, cuda, none, got 'gpu'" in one_sentence(done.stderr)
