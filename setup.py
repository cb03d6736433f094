# SPDX-License-Identifier: Apache-2.0
"""Decides whether to compile stc_kernels._C, and has CMake do it. All metadata: pyproject.toml.

STC_KERNELS_BUILD selects the mode:
  auto  (default) compile if torch, a C++ compiler and CMake are there, otherwise pure Python; with
        CUDA kernels if nvcc is there, too
  cpu   compile without CUDA kernels, or stop with the reason
  cuda  compile with CUDA kernels, or stop with the reason
  none  pure Python
STC_KERNELS_CUDA_ARCHS, or else TORCH_CUDA_ARCH_LIST, names the GPUs: 80,90+PTX or 8.0;9.0+PTX.
MAX_JOBS limits how many files are compiled at once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
OLDEST_TORCH = (2, 10)
#: GPUs compiled for by default, as far as nvcc knows them; later ones compile PTX of the last
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
#: the first with bfloat16 and asynchronous copies; TORCH_CUDA_ARCH_LIST may well hold older ones
OLDEST_ARCH = "sm_80"
#: commands that produce something to install; the others (metadata, sdist) need no decision
BUILDING = {"bdist_wheel", "build", "build_ext", "build_py", "develop", "editable_wheel", "install"}

#: run by the interpreter that will use the package; prints where torch is, without importing it
FIND_TORCH = """
import importlib.metadata, importlib.util, json
spec = importlib.util.find_spec("torch")
found = spec is not None and spec.submodule_search_locations
print(json.dumps([found[0], importlib.metadata.version("torch")] if found else None))
"""

#: what every file of the bindings needs
PROBE = """
#include <Python.h>
#include <optional>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
int main() { return static_cast<int>(std::optional<int>(0).value()); }
"""


class CannotCompileError(Exception):
    """Something that a native build needs is missing; the message says what to do.

    The code is what `stc doctor` knows it by.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Toolchain(NamedTuple):
    """Everything that the CMake build is told."""

    torch_root: str
    torch_version: str
    compiler: str
    cmake: str
    ninja: str | None
    pybind11_include: str
    nvcc: str | None = None
    cuda_archs: str | None = None


class Decision(NamedTuple):
    """The outcome for this build."""

    mode: str
    native: bool
    reason: str
    tools: Toolchain | None = None
    code: str | None = None


def find_torch() -> tuple[str, str]:
    """Return root and version of the torch to compile against.

    An isolated build of pip runs the user's interpreter with its own packages added through
    PYTHON* variables. Without those it sees what the user has installed, which is the torch that
    the library will meet.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for flags, env in (((), dict(os.environ)), (("-I",), clean)):
        command = [sys.executable, *flags, "-c", FIND_TORCH]
        done = subprocess.run(command, env=env, cwd="/", capture_output=True, text=True)
        found = json.loads(done.stdout) if done.returncode == 0 else None
        if found:
            root, version = found
            if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TORCH:
                oldest = ".".join(map(str, OLDEST_TORCH))
                raise CannotCompileError(
                    "old-torch",
                    f"torch {version} is too old to compile against: install torch>={oldest}",
                )
            return root, version
    raise CannotCompileError(
        "no-torch",
        f"torch is not installed for {sys.executable}: install torch first, or use "
        "pip install --no-build-isolation",
    )


def find_tool(name: str, package_attribute: str) -> str | None:
    """Return a tool on PATH, or the one that a Python package of the same name brings."""
    if path := shutil.which(name):
        return path
    if importlib.util.find_spec(name) is None:
        return None
    directory = getattr(importlib.import_module(name), package_attribute, "")
    return shutil.which(name, path=directory)


def find_compiler() -> str:
    """Return the C++ compiler: CXX, or the first usual name on PATH."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        # CXX may carry a launcher or flags: "ccache g++".
        if name and shutil.which(shlex.split(name)[0]):
            return name
    raise CannotCompileError(
        "no-compiler", "no C++ compiler was found: install g++ or clang++, or set CXX to one"
    )


def probe(compiler: str, torch_root: str) -> None:
    """Compile a few lines, so that what is unfit shows before the build starts."""
    includes = [f"-I{sysconfig.get_paths()['include']}", f"-isystem{torch_root}/include"]
    target = "-DTORCH_TARGET_VERSION=0x020a000000000000"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(PROBE)
        command = [*shlex.split(compiler), "-std=c++17", "-fsyntax-only", target, *includes]
        done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        errors = [line for line in done.stderr.splitlines() if "error" in line]
        detail = errors[0].strip() if errors else f"exit status {done.returncode}"
        raise CannotCompileError(
            "no-headers",
            f"{compiler} cannot compile against Python and torch ({detail}): install the Python "
            "headers (python3-dev) and a compiler with C++17",
        )


def find_toolchain() -> Toolchain:
    """Return all that a native build needs, or raise CannotCompileError."""
    if not sys.platform.startswith("linux"):
        raise CannotCompileError(
            "not-linux", f"native kernels are built on Linux only, this is {sys.platform}"
        )
    torch_root, torch_version = find_torch()
    compiler = find_compiler()
    cmake = find_tool("cmake", "CMAKE_BIN_DIR")
    if cmake is None:
        raise CannotCompileError("no-cmake", "CMake was not found: pip install cmake ninja")
    ninja = find_tool("ninja", "BIN_DIR")
    if ninja is None and shutil.which("make") is None:
        raise CannotCompileError("no-ninja", "neither ninja nor make was found: pip install ninja")
    if importlib.util.find_spec("pybind11") is None:
        raise CannotCompileError("no-pybind11", "pybind11 was not found: pip install pybind11")
    probe(compiler, torch_root)
    include = importlib.import_module("pybind11").get_include()
    return Toolchain(torch_root, torch_version, compiler, cmake, ninja, include)


def find_nvcc() -> str:
    """Return the CUDA compiler: CUDACXX, of CUDA_HOME, on PATH, or in the usual place."""
    if chosen := os.environ.get("CUDACXX"):
        if path := shutil.which(chosen):
            return path
        raise CannotCompileError(
            "wrong-cudacxx", f"CUDACXX is {chosen}, which is not there or cannot be run"
        )
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else []
    for place in (*places, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if path := shutil.which(place):
            return path
    raise CannotCompileError(
        "no-nvcc", "nvcc was not found: install the CUDA toolkit, or set CUDA_HOME to where it is"
    )


def is_new_enough(arch: tuple[str, str, str]) -> bool:
    """Whether the kernels compile for a GPU, given as ("8", "0", "+PTX") or ("9", "0a", "")."""
    number = int(arch[0] + arch[1].rstrip("af"))
    return number >= int(OLDEST_ARCH.removeprefix("sm_"))


def find_cuda_archs(nvcc: str) -> str:
    """Return the architectures to compile for, such as "80,90+PTX", or exit with one sentence."""
    for variable in ("STC_KERNELS_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        wanted = os.environ.get(variable, "").strip()
        names = [name for name in re.split(r"[,;\s]+", wanted) if name]
        matches = [re.fullmatch(r"(\d+)\.?(\d[af]?)(\+PTX)?", name) for name in names]
        if not all(matches):
            raise SystemExit(f"{variable} must be a list such as 80,90+PTX, got {wanted!r}")
        found = [match.groups("") for match in matches]
        fit = ["".join(arch) for arch in found if is_new_enough(arch)]
        if len(fit) < len(found) and variable.startswith("STC_"):
            raise SystemExit(f"{variable} must name GPUs from {OLDEST_ARCH} on, got {wanted!r}")
        if found and not fit:
            raise CannotCompileError(
                "old-arch-list", f"{variable}={wanted} names no GPU from {OLDEST_ARCH} on"
            )
        if fit:
            return ",".join(fit)
    done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    known = [arch for arch in CUDA_ARCHS if f"sm_{arch}" in done.stdout.split()]
    if not known:
        raise CannotCompileError(
            "old-nvcc", f"{nvcc} knows no GPU from {OLDEST_ARCH} on: update it"
        )
    return ",".join(known) + "+PTX"


def add_cuda(tools: Toolchain) -> Toolchain:
    """Return the toolchain with all that CUDA kernels need, or raise CannotCompileError."""
    if "+rocm" in tools.torch_version:
        raise CannotCompileError(
            "rocm", f"torch {tools.torch_version} is for AMD GPUs, where the Triton kernels run"
        )
    nvcc = find_nvcc()
    archs = find_cuda_archs(nvcc)
    first = re.match(r"\w+", archs).group()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cu")
        source.write_text("#include <cuda_bf16.h>\n__global__ void probe() {}\n")
        command = [nvcc, "-std=c++17", "-ccbin", shlex.split(tools.compiler)[-1], "-c"]
        command += [f"-arch=sm_{first}", "-o", f"{folder}/probe.o", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no output"]
        raise CannotCompileError(
            "nvcc-fails",
            f"{nvcc} cannot compile for sm_{first} with {tools.compiler} ({errors[0].strip()})",
        )
    return tools._replace(nvcc=nvcc, cuda_archs=archs)


def decide() -> Decision:
    """Return what to build, or exit with one sentence."""
    mode = os.environ.get("STC_KERNELS_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise SystemExit(f"STC_KERNELS_BUILD must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "none":
        return Decision(mode, False, "STC_KERNELS_BUILD=none", code="build-none")
    try:
        tools = find_toolchain()
    except CannotCompileError as error:
        if mode != "auto":
            raise SystemExit(f"STC_KERNELS_BUILD={mode}: {error}") from None
        return Decision(mode, False, str(error), code=error.code)
    reason = f"{tools.compiler} against torch {tools.torch_version}"
    if mode == "cpu":
        return Decision(mode, True, reason, tools)
    try:
        tools = add_cuda(tools)
    except CannotCompileError as error:
        if mode == "cuda":
            raise SystemExit(f"STC_KERNELS_BUILD=cuda: {error}") from None
        return Decision(mode, True, f"{reason}; no CUDA kernels: {error}", tools, error.code)
    return Decision(mode, True, f"{reason}; {tools.nvcc} for {tools.cuda_archs}", tools)


def find_jobs() -> int:
    """Return how many files to compile at once: MAX_JOBS, or one per core."""
    wanted = os.environ.get("MAX_JOBS", "").strip()
    if not wanted:
        return os.cpu_count() or 1
    if not wanted.isdecimal() or int(wanted) < 1:
        raise SystemExit(f"MAX_JOBS must be at least 1 (files compiled at once), got {wanted!r}")
    return int(wanted)


class BuildPython(build_py):
    """Records the decision beside the Python files, for stc_kernels._native to read."""

    def run(self) -> None:
        """Copy the Python files, then write the record."""
        super().run()
        folder = ROOT / "stc_kernels" if self.editable_mode else Path(self.build_lib, "stc_kernels")
        folder.mkdir(parents=True, exist_ok=True)
        decision = DECISION or decide()
        record = {"mode": decision.mode, "native": decision.native, "reason": decision.reason}
        record["code"] = decision.code
        text = json.dumps(record, indent=2) + "\n"
        Path(folder, "_build_config.json").write_text(text, encoding="utf-8")
        if not decision.native:
            # A library of an earlier build must not outlive the wish for a pure one.
            for stale in folder.glob(f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"):
                stale.unlink()


class BuildNative(build_ext):
    """Runs CMake for the one extension."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, build, and leave the module where setuptools expects it."""
        jobs = find_jobs()
        tools = DECISION.tools
        output = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        values = {
            "CMAKE_BUILD_TYPE": "Debug" if self.debug else "Release",
            "Python3_EXECUTABLE": sys.executable,
            "STC_OUTPUT_DIR": output,
            "STC_BUILD_MODE": DECISION.mode,
            "STC_BUILD_REASON": DECISION.reason,
            "STC_TORCH_ROOT": tools.torch_root,
            "STC_TORCH_VERSION": tools.torch_version,
            "STC_PYBIND11_INCLUDE": tools.pybind11_include,
        }
        if tools.nvcc:
            values |= {"STC_WITH_CUDA": "ON", "STC_CUDA_ARCHS": tools.cuda_archs}
            values |= {"CMAKE_CUDA_COMPILER": tools.nvcc}
        if tools.ninja:
            values["CMAKE_MAKE_PROGRAM"] = tools.ninja
        configure = [tools.cmake, "-S", str(ROOT), "-B", str(build), "--fresh"]
        configure += ["-G", "Ninja" if tools.ninja else "Unix Makefiles"]
        configure += [f"-D{name}={value}" for name, value in values.items()]
        environment = {**os.environ, "CXX": tools.compiler}
        subprocess.run(configure, check=True, env=environment)
        subprocess.run([tools.cmake, "--build", str(build), "-j", str(jobs)], check=True)


DECISION = decide() if BUILDING & set(sys.argv) else None
if DECISION is not None:
    kind = "with native CPU kernels" if DECISION.native else "pure Python"
    if DECISION.tools and DECISION.tools.nvcc:
        kind = "with native CPU and CUDA kernels"
    print(f"stc-kernels: building {kind} ({DECISION.mode}: {DECISION.reason})", flush=True)

setup(
    packages=[
        *find_packages(".", include=["stc_kernels", "stc_kernels.*"]),
        *find_packages("python", include=["stc_video", "stc_video.*"]),
    ],
    package_data={
        "stc_kernels": ["py.typed", "configs/*.json"],
        "stc_video": [
            "py.typed",
            "calibrations/*.json",
            "evaluation/lmms_eval/tasks/*",
            "loading/assets/*/*",
            "report/assets/*",
            "serve/assets/*",
        ],
    },
    ext_modules=[Extension("stc_kernels._C", [])] if DECISION and DECISION.native else [],
    cmdclass={"build_py": BuildPython, "build_ext": BuildNative},
)
