# SPDX-License-Identifier: Apache-2.0
"""What is wrong with an installation, and what to do; docs/install.md says the same at length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["REMEDIES", "Finding", "findings", "remedy_of"]

_AGAIN = "then install stc-kernels again"

#: part of a reason -> what to do about it; the first that occurs counts
REMEDIES: dict[str, str] = {
    "torch is not installed for": f"pip install torch, {_AGAIN} (uv: --no-build-isolation)",
    "is too old to compile against": f'pip install "torch>=2.10", {_AGAIN}',
    "no C++ compiler was found": f"install g++ or clang++, or set CXX, {_AGAIN}",
    "cannot compile against Python and torch": f"install the Python headers, {_AGAIN}",
    "CMake was not found": f"pip install cmake ninja, {_AGAIN}",
    "neither ninja nor make was found": f"pip install ninja, {_AGAIN}",
    "pybind11 was not found": f"pip install pybind11, {_AGAIN}",
    "built for another Python": "install stc-kernels again with this Python",
    "needs torch 2.10 or newer": 'pip install "torch>=2.10"',
    "STC_KERNELS_BUILD=none": "unset STC_KERNELS_BUILD, then install stc-kernels again",
    "no build has run": "pip install . in the checkout",
    "nvcc was not found": f"install the CUDA toolkit, or set CUDA_HOME, {_AGAIN}",
    "CUDACXX is": f"let CUDACXX name an nvcc, or unset it, {_AGAIN}",
    "knows no GPU from sm_80": f"update the CUDA toolkit, {_AGAIN}",
    "names no GPU from sm_80 on": f"unset TORCH_CUDA_ARCH_LIST, {_AGAIN}",
    "cannot compile for": f"set CXX to a C++ compiler that this nvcc takes, {_AGAIN}",
    "built without CUDA kernels": "install stc-kernels again with STC_KERNELS_BUILD=cuda",
    "was built by CUDA": f"update the driver, or set CUDA_HOME to an older toolkit, {_AGAIN}",
    "none of which runs on": (
        "install stc-kernels again with STC_KERNELS_CUDA_ARCHS naming this GPU, from sm_80 on, or "
        "hide it: CUDA_VISIBLE_DEVICES"
    ),
    "has no CUDA support": "install a build of torch for CUDA: pip install torch",
    "`triton` is not installed": "pip install 'stc-kernels[triton]'",
    "is too old (3.6 is the oldest": "pip install --upgrade triton",
}


@dataclass(frozen=True)
class Finding:
    """Something that keeps operators from their fast kernels.

    Attributes
    ----------
    problem
        What.
    remedy
        What to do about it.
    """

    problem: str
    remedy: str


def remedy_of(problem: str) -> str:
    """Return what to do about a reason that a backend gives for not running."""
    return next((do for part, do in REMEDIES.items() if part in problem), "see docs/install.md")


def findings() -> list[Finding]:
    """Look for what keeps the compiled library, and a GPU if there is one, from being used.

    Returns
    -------
    list of Finding
        Empty where everything runs that this machine could run.
    """
    import torch

    from stc_kernels import available_backends

    on_cpu = available_backends("token_cosine", "cpu").unavailable
    on_gpu = available_backends("token_cosine", "cuda").unavailable
    problems = [on_cpu.get("native")]
    if problems == [None]:  # of a library that is not there no more needs saying
        problems.append(on_gpu.get("native") if _matters(on_gpu.get("native")) else None)
    if torch.cuda.is_available():
        problems.append(on_gpu.get("triton"))
    return [Finding(text, remedy_of(text)) for text in problems if text is not None]


def _matters(problem: str | None) -> bool:
    """Whether a reason against a GPU's kernels is more than that there is no GPU."""
    if problem is None or "torch sees no GPU" in problem:
        return False
    return "has no CUDA support" not in problem or Path("/proc/driver/nvidia/version").exists()
