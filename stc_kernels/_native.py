# SPDX-License-Identifier: Apache-2.0
"""The compiled library ``stc_kernels._C``: loaded once, when first needed, or a reason why not."""

from __future__ import annotations

import functools
import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import cast

# The library has no search path to torch's own libraries; they must be in the process already.
import torch

from stc_kernels._reason import Reason

_MODULE = f"{__package__}._C"
_HERE = Path(__file__).parent
#: written by setup.py: {"mode": ..., "native": ..., "reason": ..., "code": ...}
_BUILD_CONFIG = _HERE / "_build_config.json"


def _read_build_config() -> dict[str, object]:
    try:
        config = json.loads(_BUILD_CONFIG.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _build_code(otherwise: str) -> str:
    """Return the code of what kept the build from being complete, if it says so."""
    return str(_read_build_config().get("code") or otherwise)


def _why_missing() -> Reason:
    """Return why there is no module that this interpreter could import."""
    others = sorted(path.name for path in _HERE.glob("_C.*.so"))
    if others:
        text = f"the compiled library was built for another Python ({', '.join(others)}); reinstall"
        return Reason("other-python", text)
    reason = _read_build_config().get("reason")
    if isinstance(reason, str) and reason:
        return Reason(_build_code("not-built"), f"the compiled library was not built: {reason}")
    text = "the compiled library was not built (no build has run in this directory)"
    return Reason("no-build", text)


def _why_broken(error: ImportError) -> Reason:
    """Return what an import error of an existing module means."""
    if "undefined symbol" in str(error):
        return Reason(
            "torch-too-old",
            f"the compiled library needs torch 2.10 or newer and this is {torch.__version__} "
            f"({error})",
        )
    return Reason("broken", f"the compiled library could not be loaded ({error})")


@functools.cache
def _import() -> tuple[ModuleType | None, Reason | None]:
    try:
        return importlib.import_module(_MODULE), None
    except ModuleNotFoundError as error:
        # A module that exists may still miss another one.
        return None, _why_missing() if error.name == _MODULE else _why_broken(error)
    except ImportError as error:
        return None, _why_broken(error)


def load() -> Reason | None:
    """Load the compiled library and register its operators, the first time this is called.

    Returns
    -------
    str or None
        None when it is loaded, otherwise one sentence that says why it is not.
    """
    return _import()[1]


@functools.cache
def why_not_on(device: str) -> Reason | None:
    """Return None if the loaded library can run on a device type, else the reason."""
    if device == "cpu":
        return None
    if device != "cuda":
        text = f"the compiled library has kernels for CPUs and NVIDIA GPUs, not for {device!r}"
        return Reason("other-device", text)
    info = build_info()
    if info["cuda_archs"] is None:
        text = f"the compiled library was built without CUDA kernels ({info['build_reason']})"
        return Reason(_build_code("no-cuda-kernels"), text)
    if torch.version.hip is not None:
        return Reason("not-nvidia", "the compiled library has kernels for NVIDIA GPUs only")
    if not torch.backends.cuda.is_built():
        return Reason("torch-without-cuda", f"torch {torch.__version__} has no CUDA support")
    if not torch.cuda.is_available():
        return Reason("no-gpu", "torch sees no GPU")
    archs = [str(arch) for arch in cast("list[object]", info["cuda_archs"])]
    return _why_not_driver(str(info["cuda_version"]), driver_cuda()) or _why_not_gpus(
        archs, _gpus()
    )


def driver_cuda() -> tuple[int, int] | None:
    """Return the newest CUDA that the GPU's driver knows, or None if it cannot be asked."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)
    number = ask() if ask is not None else 0
    return (number // 1000, number % 1000 // 10) if number else None


def _why_not_driver(built_by: str, driver: tuple[int, int] | None) -> Reason | None:
    """Return why a driver cannot run what a CUDA release built; within a major version it can."""
    if driver is None or driver[0] >= int(built_by.split(".")[0]):
        return None
    knows = ".".join(map(str, driver))
    return Reason(
        "old-driver",
        f"the compiled library was built by CUDA {built_by}, and this driver knows CUDA {knows} "
        "at most",
    )


def _gpus() -> list[tuple[int, int, str]]:
    """Return compute capability (major, minor) and name of every GPU that torch sees."""
    count = torch.cuda.device_count()
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return [(gpu.major, gpu.minor, gpu.name) for gpu in found]


def _why_not_gpus(archs: list[str], gpus: list[tuple[int, int, str]]) -> Reason | None:
    """Return why one of the GPUs cannot run what was compiled for ``archs``: 80, 90a, 120+PTX."""
    for major, minor, name in gpus:
        if not any(_runs(arch, major, minor) for arch in archs):
            return Reason(
                "no-kernels-for-gpu",
                f"the compiled library has kernels for {','.join(archs)}, none of which runs on "
                f"{name} (sm_{major}{minor})",
            )
    return None


def _runs(arch: str, major: int, minor: int) -> bool:
    """Whether code for an architecture runs on a GPU: of its own generation, or as PTX later."""
    match = re.fullmatch(r"(\d+)(\d)([af]?)(\+PTX)?", arch)
    if match is None:
        return False
    its_major, its_minor, only, ptx = int(match[1]), int(match[2]), match[3], match[4]
    if only == "a":  # for this very GPU, as machine code and as PTX
        return (major, minor) == (its_major, its_minor)
    if major == its_major and minor >= its_minor:
        return True
    return ptx is not None and not only and (major, minor) >= (its_major, its_minor)


def build_info() -> dict[str, object]:
    """Return facts about the compiled library.

    Returns
    -------
    dict
        ``native`` says whether the library is loaded. If it is: ``version``, ``compiler``,
        ``torch_built_against``, ``torch_target``, ``cpu_capabilities`` (compiled),
        ``cpu_capability`` (in use), ``cuda_archs`` (None without CUDA kernels), ``cuda_version``
        (of nvcc), ``build_mode``, ``build_reason`` and
        ``namespace``. If not: ``build_mode``, ``build_reason`` (None where no build has run) and
        ``reason``.
    """
    module, reason = _import()
    if module is None:
        config = _read_build_config()
        return {
            "native": False,
            "build_mode": config.get("mode"),
            "build_reason": config.get("reason"),
            "reason": reason,
        }
    return {"native": True, **module.build_info()}
