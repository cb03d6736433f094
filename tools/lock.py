# SPDX-License-Identifier: Apache-2.0
"""Write the constraints files in requirements/, with uv; see `make lock`.

    python tools/lock.py --python 3.11 --transformers 4.57.6 --torch torch==2.13.0

`pyXY.txt` holds one release of everything that the package, its tests and its tools need, but for
torch and what only a torch for GPUs brings: which build of torch is right depends on the machine.
`transformers-X.txt` and `kernels.txt` hold what is tested in a folder of its own.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "requirements"
UV = Path(sys.executable).with_name("uv")
HEADER = "# Made by `make lock`.\n"
#: brought by torch itself, and only by some of its builds
OF_TORCH = re.compile(r"^(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")
PROJECT = ("pyproject.toml", "--extra", "serve", "--group", "dev", "--group", "docs")
DATA = ("--no-deps", "--group", "data")


def compile_lines(*arguments: str, given: str = "") -> list[str]:
    """Resolve requirements; returns the pinned lines."""
    command = [UV, "pip", "compile", "--quiet", "--upgrade", "--no-header", "--no-annotate"]
    done = subprocess.run(
        [*map(str, command), *arguments],
        input=given,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if line and not OF_TORCH.match(line)]


def write(name: str, lines: list[str]) -> None:
    """Write one file of requirements/."""
    path = OUT / name
    path.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(lines)} packages")


def main() -> None:
    """Read the command line and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", default=[])
    parser.add_argument("--transformers", action="append", default=[])
    parser.add_argument("--torch", required=True)
    arguments = parser.parse_args()
    OUT.mkdir(exist_ok=True)
    torch = OUT / "torch.in"
    torch.write_text(arguments.torch + "\n", encoding="utf-8")
    try:
        for version in arguments.python:
            here = ("--python-version", version, "--python-platform", "x86_64-manylinux_2_28")
            lines = compile_lines(*PROJECT, *here, "--constraint", str(torch))
            lines += compile_lines(*DATA, *here)
            write(f"py{version.replace('.', '')}.txt", lines)
    finally:
        torch.unlink()
    # One file for every Python.
    universal = ("-", "--universal", "--python-version", "3.10")
    for release in arguments.transformers:
        pinned = f"transformers=={release}"
        write(f"transformers-{release}.txt", compile_lines(*universal, given=pinned))
    write("kernels.txt", compile_lines(*universal, given="kernels>=0.17"))


if __name__ == "__main__":
    main()
