# SPDX-License-Identifier: Apache-2.0
"""Problems of an installation and their remedies; docs/install.md has them at length."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_AGAIN = "then install stc-kernels again"

#: code of a reason -> what to do about it
REMEDIES: dict[str, str] = {
    "no-torch": f"pip install torch, {_AGAIN} (uv: --no-build-isolation)",
    "old-torch": f'pip install "torch>=2.10", {_AGAIN}',
    "no-compiler": f"install g++ or clang++, or set CXX, {_AGAIN}",
    "no-headers": f"install the Python headers, {_AGAIN}",
    "no-cmake": f"pip install cmake ninja, {_AGAIN}",
    "no-ninja": f"pip install ninja, {_AGAIN}",
    "no-pybind11": f"pip install pybind11, {_AGAIN}",
    "other-python": "install stc-kernels again with this Python",
    "torch-too-old": 'pip install "torch>=2.10"',
    "build-none": "unset STC_KERNELS_BUILD, then install stc-kernels again",
    "no-build": "pip install . in the checkout",
    "no-nvcc": f"install the CUDA toolkit, or set CUDA_HOME, {_AGAIN}",
    "wrong-cudacxx": f"let CUDACXX name an nvcc, or unset it, {_AGAIN}",
    "old-nvcc": f"update the CUDA toolkit, {_AGAIN}",
    "old-arch-list": f"unset TORCH_CUDA_ARCH_LIST, {_AGAIN}",
    "nvcc-fails": f"set CXX to a C++ compiler that this nvcc takes, {_AGAIN}",
    "no-cuda-kernels": "install stc-kernels again with STC_KERNELS_BUILD=cuda",
    "old-driver": f"update the driver, or set CUDA_HOME to an older toolkit, {_AGAIN}",
    "no-kernels-for-gpu": (
        "install stc-kernels again with STC_KERNELS_CUDA_ARCHS naming this GPU, from sm_80 on, or "
        "hide it: CUDA_VISIBLE_DEVICES"
    ),
    "torch-without-cuda": "install a build of torch for CUDA: pip install torch",
    "no-triton": 'pip install "triton>=3.6"',
    "old-triton": "pip install --upgrade triton",
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
    return REMEDIES.get(getattr(problem, "code", ""), "see docs/install.md")


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
    code = getattr(problem, "code", None)
    if problem is None or code == "no-gpu":
        return False
    return code != "torch-without-cuda" or Path("/proc/driver/nvidia/version").exists()
