# SPDX-License-Identifier: Apache-2.0
"""What ptxas says that each kernel in csrc/cuda needs, for every architecture, without a GPU."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("80", "86", "89", "90", "100", "120")
#: what a block may have without asking for more
SHARED_LIMIT = 48 * 1024

_ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
_KERNEL = re.compile(r"stc::cuda::(\w+?)_kernel(?:<(.*?)>)?\(")
_DTYPES = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}
_DTYPES |= {"unsigned short": "16-bit", "unsigned int": "32-bit"}


def nvcc() -> str | None:
    """Return the CUDA compiler, if there is one."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def sources() -> list[Path]:
    """Return the files that hold kernels."""
    return sorted(ROOT.glob("csrc/cuda/*.cu"))


def native_rows(processes: int, only: list[str]) -> list[dict[str, object]]:
    """Compile the sources of these names for every architecture; a row per kernel."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"V([\d.]+)", version.stdout)
    jobs = [(source, arch) for source in sources() for arch in ARCHS if source.stem in only]
    with ThreadPoolExecutor(processes) as pool:
        results = pool.map(lambda job: _report(compiler, *job), jobs)
        reports = list(track(results, "nvcc", total=len(jobs)))
    rows = [
        _row(source, arch, entry, release.group(1) if release else "unknown")
        for (source, arch), report in zip(jobs, reports, strict=True)
        for entry in _ENTRY.finditer(report)
    ]
    if jobs and not rows:
        raise RuntimeError(f"{compiler} named no kernel in csrc/cuda")
    return rows


def _report(compiler: str, source: Path, arch: str) -> str:
    """Return what ptxas reports for one source, with readable names."""
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++17", "-O3", "-DSTC_ISA=cuda", f"-I{ROOT}/csrc/include"]
        command += [f"-arch=sm_{arch}", "-Xptxas=-v", "-cubin", "-o", f"{folder}/out", str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source.name} does not compile for sm_{arch}:\n{done.stderr}")
    return done.stderr


def _demangle(name: str) -> str:
    done = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _row(source: Path, arch: str, entry: re.Match[str], version: str) -> dict[str, object]:
    kernel, arguments = _kernel_of(_demangle(entry["name"]))
    constants = [value for value in arguments if value not in _DTYPES]
    shared = re.search(r"(\d+) bytes smem", entry["rest"])
    return {
        "backend": "native",
        "op": source.stem,
        "kernel": kernel,
        "config": " ".join((*constants, f"nvcc={version}")),
        "dtype": next((_DTYPES[value] for value in arguments if value in _DTYPES), "float32"),
        "target": f"sm_{arch}",
        "registers": int(entry["registers"]),
        "spill_bytes": int(entry["stores"]) + int(entry["loads"]),
        "shared_bytes": int(shared.group(1)) if shared else 0,
        "stack_bytes": int(entry["stack"]),
        "limit_shared_bytes": SHARED_LIMIT,
    }


def _kernel_of(name: str) -> tuple[str, list[str]]:
    """Split ``stc::cuda::gather_rows_kernel<unsigned int, 4>(...)`` into name and arguments."""
    match = _KERNEL.search(name)
    if match is None:
        raise RuntimeError(f"not a kernel of this project: {name}")
    arguments = (match.group(2) or "").split(",")
    # An enumerator is printed as (stc::cuda::Name)1.
    readable = [re.sub(r"\(.*?(\w+)\)", r"\1=", value.strip()) for value in arguments]
    return match.group(1), [value for value in readable if value]
