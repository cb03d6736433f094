# SPDX-License-Identifier: Apache-2.0
"""Pack what a machine without a network lacks, and install it there.

Where there is a network, for the Python of the other machine::

    python tools/pack_wheels.py pack --python 3.12            # fills wheels/

On the other machine, which has torch and Triton of its own::

    python tools/pack_wheels.py install --into build/gpu-session/site
    export PYTHONPATH=build/gpu-session/site

Releases are those of requirements/. torch and what it brings are left out, and packages that are
installed there, in whichever release, are not installed again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: what the session imports; matplotlib, which draws its picture, is done without
NEEDED = ("accelerate", "pillow", "pytest", "rich", "safetensors", "transformers", "typer")
BUILD = ("cmake", "ninja", "pybind11", "setuptools")
#: comes with the machine
OF_TORCH = ("torch", "triton", "nvidia-", "cuda-")
#: of wheels that run there, the newest C library first
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5))


def needed(python: str, with_build: bool) -> list[str]:
    """Requirements of everything that is needed, dependencies included, from the locked file."""
    lock = ROOT / "requirements" / f"py{python.replace('.', '')}.txt"
    if not lock.exists():
        there = sorted(path.stem for path in lock.parent.glob("py3*.txt"))
        raise SystemExit(f"--python must be one of {', '.join(there)}, got {python}")
    pins = {
        line.partition("==")[0].lower(): line
        for line in lock.read_text().splitlines()
        if "==" in line
    }
    wanted = [*NEEDED, *(BUILD if with_build else ())]
    return [pins[name] for name in _closure(wanted, pins)]


def _closure(names: Sequence[str], pins: dict[str, str]) -> list[str]:
    """Names of packages and of what they depend on, as this interpreter's own packages say."""
    found: dict[str, None] = {}
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace("_", "-")
        if name in found or name.startswith(OF_TORCH) or name not in pins:
            continue
        found[name] = None
        for line in metadata.requires(name) or ():
            if "extra ==" not in line:
                todo.append(_name_of(line))
    return sorted(found)


def _name_of(requirement: str) -> str:
    end = next((i for i, c in enumerate(requirement) if c in " <>=!~;[("), len(requirement))
    return requirement[:end]


def pack(python: str, wheels: Path, with_build: bool) -> None:
    """Download wheels for Linux on x86-64; the index is the one that pip is configured with."""
    wheels.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(needed(python, with_build)) + "\n")
        file.flush()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(wheels), "--requirement", file.name]
        command += ["--implementation=cp", f"--python-version={python}"]
        subprocess.run([*command, *(f"--platform={name}" for name in PLATFORMS)], check=True)
    packed = sorted(wheels.glob("*.whl"))
    size = sum(path.stat().st_size for path in packed)
    print(f"{wheels}: {len(packed)} wheels, {size / 2**20:.0f} MiB, for Python {python}")


def install(wheels: Path, into: Path) -> None:
    """Install the packed wheels of what is not installed here."""
    packed = sorted(wheels.glob("*.whl"))
    if not packed:
        print(f"{wheels} holds no wheels: taking what is installed")
        return
    missing = [path for path in packed if not _is_installed(path.name.partition("-")[0])]
    print(f"{len(missing)} of {len(packed)} packages are not installed here")
    if missing:
        command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
        subprocess.run([*command, "--target", str(into), *map(str, missing)], check=True)


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="download wheels")
    packing.add_argument("--python", required=True, help="of the other machine, such as 3.12")
    packing.add_argument(
        "--no-build", action="store_true", help="without what compiles the library"
    )
    installing = commands.add_parser("install", help="install them, without a network")
    installing.add_argument("--into", type=Path, required=True)
    for one in (packing, installing):
        one.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="default: wheels/")
    arguments = parser.parse_args()
    if arguments.command == "pack":
        pack(arguments.python, arguments.wheels, not arguments.no_build)
    else:
        install(arguments.wheels, arguments.into)


if __name__ == "__main__":
    main()
