# SPDX-License-Identifier: Apache-2.0
"""`stc doctor` on broken installations, each made here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from packaging_tools import Run

import stc_kernels
from stc_kernels import _dispatch, _native
from stc_video.cli.installation import REMEDIES, findings, remedy_of

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import dataclasses, json
from stc_video.cli.installation import findings
print(json.dumps([dataclasses.asdict(found) for found in findings()]))
"""
#: a library that asks torch for something that only a newer one has
FROM_THE_FUTURE = """
extern void *torch_function_of_a_later_release(void);
void *PyInit__C(void) { return torch_function_of_a_later_release(); }
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package without a compiled library."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_build_config.json")
    return shutil.copytree(ROOT / "stc_kernels", tmp_path / "site/stc_kernels", ignore=ignored)


def found_in(package: Path) -> tuple[str, str]:
    """Problem and remedy that a fresh interpreter finds with this copy of the package."""
    path = os.pathsep.join([str(package.parent), str(ROOT / "python"), *filter(None, sys.path)])
    # Without site, whose finder of an editable installation would find that one's library.
    command = [sys.executable, "-S", "-W", "ignore", "-c", CODE]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        command, env=environment, cwd=package.parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    return found["problem"], found["remedy"]


def build_without(run: Run, package: Path, tmp_path: Path, **how: str) -> None:
    """Let setup.py decide, and record, in such an environment."""
    done = run("setup.py", "-q", "build_py", "--build-lib", tmp_path / "lib", mode="auto", **how)
    assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "lib/stc_kernels/_build_config.json", package)


def test_no_compiler(run, package, tmp_path):
    (tmp_path / "bin").mkdir()
    build_without(run, package, tmp_path, PATH=str(tmp_path / "bin"))
    problem, remedy = found_in(package)
    assert "was not built: no C++ compiler was found" in problem
    assert "install g++ or clang++" in remedy


def test_a_torch_that_is_too_old_to_compile_against(run, package, tmp_path):
    fake = tmp_path / "fake"
    (fake / "torch").mkdir(parents=True)
    (fake / "torch/__init__.py").touch()
    (fake / "torch-2.9.1.dist-info").mkdir()
    (fake / "torch-2.9.1.dist-info/METADATA").write_text("Name: torch\nVersion: 2.9.1\n")
    build_without(run, package, tmp_path, PYTHONPATH=str(fake))
    problem, remedy = found_in(package)
    assert "torch 2.9.1 is too old to compile against" in problem
    assert 'pip install "torch>=2.10"' in remedy


def test_a_torch_that_is_too_old_to_run_the_library(package, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "future.c"
    source.write_text(FROM_THE_FUTURE)
    library = package / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    problem, remedy = found_in(package)
    assert "needs torch 2.10 or newer" in problem
    assert "torch_function_of_a_later_release" in problem
    assert "torch>=2.10" in remedy


def test_a_library_of_another_python(package):
    (package / "_C.cpython-399-x86_64-linux-gnu.so").touch()
    problem, remedy = found_in(package)
    assert "built for another Python (_C.cpython-399-x86_64-linux-gnu.so)" in problem
    assert "with this Python" in remedy


@pytest.fixture
def fresh():
    """Let the reasons be found anew, now and afterwards."""

    def forget() -> None:
        _native.why_not_on.cache_clear()
        _dispatch.forget()

    forget()
    yield
    forget()


def test_no_nvcc(run, package, tmp_path, library, fresh, monkeypatch):
    """A library without CUDA kernels, for the reason that setup.py gives for building one."""
    build_without(run, package, tmp_path, CUDACXX=str(tmp_path / "nvcc"))
    reason = json.loads((package / "_build_config.json").read_text())["reason"]
    if "no CUDA kernels" not in reason:
        pytest.skip(f"no library is built here: {reason}")
    info = {**_native.build_info(), "cuda_archs": None, "build_reason": reason}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    monkeypatch.setattr(_native, "_BUILD_CONFIG", package / "_build_config.json")
    (found,) = findings()
    assert "built without CUDA kernels" in found.problem
    assert "which is not there or cannot be run" in found.problem
    assert "CUDACXX" in found.remedy


@pytest.mark.parametrize(("driver", "runs"), [((12, 8), False), ((13, 0), True), (None, True)])
def test_a_driver_of_an_older_cuda(library, fresh, monkeypatch, driver, runs):
    if stc_kernels.build_info()["cuda_archs"] is None:
        pytest.skip("the library was built without CUDA kernels")
    info = {**_native.build_info(), "cuda_version": "13.0.88"}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model T")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(_native, "driver_cuda", lambda: driver)
    monkeypatch.setattr(_native, "_gpus", lambda: [])
    problems = {found.problem: found.remedy for found in findings()}
    wrong = [text for text in problems if "was built by CUDA" in text]
    assert len(wrong) == (0 if runs else 1)
    for text in wrong:
        assert "built by CUDA 13.0.88, and this driver knows CUDA 12.8 at most" in text
        assert "update the driver" in problems[text]


@pytest.mark.parametrize(
    ("archs", "gpu", "runs"),
    [
        ("80", (8, 0), True),
        ("80", (8, 6), True),
        ("86", (8, 0), False),
        ("80", (7, 5), False),
        ("80", (9, 0), False),
        ("80+PTX", (9, 0), True),
        ("80,86,89,90,100,120+PTX", (11, 0), False),
        ("80,86,89,90,100,120+PTX", (12, 1), True),
        ("80,86,89,90,100,120+PTX", (13, 0), True),
        ("90a+PTX", (9, 0), True),
        ("90a+PTX", (10, 0), False),
        ("100f", (10, 3), True),
        ("100f+PTX", (12, 0), False),
    ],
)
def test_a_gpu_that_nothing_was_compiled_for(archs, gpu, runs):
    reason = _native._why_not_gpus(archs.split(","), [(*gpu, "Model T")])
    assert (reason is None) == runs
    if reason is not None:
        assert f"{archs}, none of which runs on Model T (sm_{gpu[0]}{gpu[1]})" in reason
        assert "STC_KERNELS_CUDA_ARCHS" in remedy_of(reason)


def test_a_gpu_that_is_too_old_is_a_finding(library, fresh, monkeypatch):
    info = {**_native.build_info(), "cuda_archs": ["80", "90+PTX"], "cuda_version": "13.0.88"}
    monkeypatch.setattr(_native, "build_info", lambda: info)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Model T")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(_native, "driver_cuda", lambda: (13, 0))
    monkeypatch.setattr(_native, "_gpus", lambda: [(8, 0, "Model S"), (7, 5, "Model T")])
    problems = {found.problem: found.remedy for found in findings()}
    (wrong,) = [text for text in problems if "Model T" in text]
    assert "kernels for 80,90+PTX, none of which runs on Model T (sm_75)" in wrong
    assert "STC_KERNELS_CUDA_ARCHS" in problems[wrong]


#: reasons about which nothing can be done on this machine, or whose text says what
WITHOUT_REMEDY = {
    "not-linux", "rocm", "not-built", "broken", "other-device", "not-nvidia", "no-gpu",
    "broken-triton",
}  # fmt: skip


def test_every_reason_has_a_remedy_and_is_documented():
    """The codes in the sources, those that `stc doctor` knows, and those of docs/install.md."""
    sources = ("setup.py", "stc_kernels/_native.py", "stc_kernels/_triton/__init__.py")
    text = "".join((ROOT / source).read_text() for source in sources)
    pattern = r'(?:Reason|CannotCompileError|_build_code)\(\s*"([a-z0-9-]+)"|code="([a-z-]+)"'
    codes = {one or other for one, other in re.findall(pattern, text)}
    assert codes == {*REMEDIES, *WITHOUT_REMEDY}
    table = (ROOT / "docs/install.md").read_text().split("## What a message means")[1]
    documented = re.findall(r"^\| `([a-z0-9-]+)` \|", table.split("\n## ")[0], flags=re.MULTILINE)
    assert sorted(documented) == sorted(REMEDIES)
