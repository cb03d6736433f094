# SPDX-License-Identifier: Apache-2.0
"""Wheels and the source distribution."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging_tools import Run, assert_stable_abi, shared_code

IMPORT = """
import sys
sys.path.remove("")  # the sources
# An editable install of this environment would lend its compiled library to a pure package.
sys.meta_path[:] = [finder for finder in sys.meta_path if "Editable" not in repr(finder)]
import torch, stc_kernels, stc_video
info = stc_kernels.build_info()
print(stc_kernels.__file__, stc_video.__file__, info["native"], info["build_mode"], sep="\\n")
stc_kernels.gather_rows(torch.ones(1, 2, 3), torch.zeros(1, 1, dtype=torch.int32))
"""
WANTED = ("stc_kernels/py.typed", "stc_video/py.typed", "stc_kernels/ops/__init__.py")


def files_of_packages(source: Path) -> set[str]:
    """What of the two packages must be installed, relative to the site directory."""
    wanted = set(WANTED)
    for root, package in ((source, "stc_kernels"), (source / "python", "stc_video")):
        for path in (root / package).rglob("*"):
            if path.suffix in {".py", ".html", ".css", ".js"}:
                wanted.add(path.relative_to(root).as_posix())
    return wanted


@pytest.mark.slow
def test_a_pure_wheel_runs_anywhere(run: Run, source: Path, tmp_path: Path):
    pip = ("-m", "pip", "--disable-pip-version-check")
    wheels, target = tmp_path / "wheels", tmp_path / "target"
    isolation = ("--no-deps", "--no-build-isolation")
    built = run(*pip, "wheel", *isolation, "-w", wheels, ".", mode="none")
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert files_of_packages(source) <= names
    assert not [name for name in names if name.endswith(".so") or name.startswith("tests")]
    assert "stc_kernels/_build_config.json" in names
    run(*pip, "install", "-q", "--no-deps", "--no-index", "--target", target, wheel)
    done = run("-W", "ignore", "-c", IMPORT, PYTHONPATH=str(target))
    assert done.returncode == 0, done.stderr
    kernels, video, native, mode = done.stdout.split()
    assert Path(kernels).is_relative_to(target)
    assert Path(video).is_relative_to(target)
    assert (native, mode) == ("False", "none")


def make_sdist(run: Run, tmp_path: Path) -> Path:
    done = run("setup.py", "-q", "sdist", "-d", tmp_path / "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "sdist").iterdir()
    return archive


def test_the_source_distribution_has_what_a_build_needs(run: Run, source: Path, tmp_path: Path):
    (source / "stc_kernels/_C.cpython-399-x86_64-linux-gnu.so").touch()
    (source / "stc_kernels/_build_config.json").touch()
    with tarfile.open(make_sdist(run, tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"setup.py", "pyproject.toml", "CMakeLists.txt", "MANIFEST.in", "LICENSE", "README.md"}
    needed |= {p.relative_to(source).as_posix() for p in (source / "csrc").rglob("*.*")}
    needed |= {p.relative_to(source).as_posix() for p in (source / "python").rglob("*.py")}
    assert needed <= names
    junk = (".so", ".pyc", "_build_config.json", ".o")
    assert not [name for name in names if name.endswith(junk)]
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docs", "build"))]


@pytest.mark.long
@pytest.mark.skipif(shutil.which("c++") is None, reason="c++ is not installed")
def test_the_source_distribution_builds_a_native_library(run: Run, tmp_path: Path):
    mode = "cuda" if shutil.which("nvcc") else "cpu"
    with tarfile.open(make_sdist(run, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (root,) = (tmp_path / "unpacked").iterdir()
    base = tmp_path / "build"
    where = ("--build-lib", base / "lib", "--build-temp", base / "temp")
    code = f"import os, runpy, sys; os.chdir({str(root)!r}); sys.path.insert(0, '.'); "
    code += "runpy.run_path('setup.py', run_name='__main__')"
    done = run("-c", code, "build", *where, mode=mode, STC_KERNELS_CUDA_ARCHS="80")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" not in "\n".join(
        line for line in (done.stdout + done.stderr).splitlines() if "csrc/" in line
    )
    (library,) = (base / "lib/stc_kernels").glob("_C*.so")
    assert_stable_abi(library)
    for isa in ("avx2", "avx512"):
        objects = list((base / "temp").rglob(f"stc_{isa}.dir/**/*.o"))
        assert shared_code(objects, isa) == []
    ran = run("-W", "ignore", "-c", IMPORT, PYTHONPATH=str(base / "lib"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[2:] == ["True", mode]
