# SPDX-License-Identifier: Apache-2.0
"""Load the compiled library with its CUDA kernels, or build it for the GPU that is here.

python tools/gpu_library.py              # builds in place if need be
python tools/gpu_library.py --pretend    # only says what there is
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SHOW = """
import stc_kernels
found = stc_kernels.available_backends("gather_rows", "cuda")
print("backends on a GPU:", ", ".join(found) or "none", *found.unavailable.items(), sep="\\n  ")
raise SystemExit("native" not in found)
"""


def has_cuda_kernels() -> bool:
    """Ask a new process, and print what it says."""
    return subprocess.run([sys.executable, "-c", SHOW], cwd=ROOT).returncode == 0


def build() -> None:
    """Compile for this GPU alone, which is several times as fast as for all."""
    major, minor = torch.cuda.get_device_capability()
    environment = {"STC_KERNELS_BUILD": "cuda", "STC_KERNELS_CUDA_ARCHS": f"{major}{minor}"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pretend", action="store_true", help="build nothing")
    arguments = parser.parse_args()
    if has_cuda_kernels() or arguments.pretend:
        return
    build()
    if not has_cuda_kernels():
        raise SystemExit("the library was built, and its CUDA kernels still cannot be used")


if __name__ == "__main__":
    main()
