# SPDX-License-Identifier: Apache-2.0
"""Lay stc_kernels out for the Hugging Face ``kernels`` package.

    python tools/hub_package.py OUT                      # pure Python and Triton, for any machine
    python tools/hub_package.py OUT --library LIBRARY    # adds the native library's variant

Such a package is imported under a name of its own, so that several can live in one process.
Imports become relative, and the operators get a namespace of their own. A library has to be built
with that namespace, which is printed: ``cmake -S . -B build/hub -DSTC_OPS_NAMESPACE=...``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "stc_kernels"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.so", "_build_config.json", "tune.py")
#: of torch, as in CMakeLists.txt; the first release whose stable ABI is enough
STABLE_ABI = "210"


def sources() -> list[Path]:
    """The Python files of a package, in a fixed order."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "tune.py")


def namespace() -> str:
    """Namespace of the operators: new with every change of the sources."""
    digest = hashlib.sha256()
    for path in sources():
        digest.update(path.read_bytes())
    return f"stc_kernels_{digest.hexdigest()[:10]}"


def with_relative_imports(text: str, depth: int) -> str:
    """Python source whose imports of stc_kernels start from the package, `depth` folders up."""
    up = "." * (depth + 1)
    text = re.sub(r"^(\s*)from stc_kernels\.", rf"\1from {up}", text, flags=re.MULTILINE)
    return re.sub(
        r"^(\s*)from stc_kernels import", rf"\1from {up} import", text, flags=re.MULTILINE
    )


def write_variant(out: Path, variant: str, backend: str, library: Path | None) -> Path:
    """Write one folder of `build`; returns it."""
    folder = out / "build" / variant
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(PACKAGE, folder, ignore=LEFT_OUT)
    for path in folder.rglob("*.py"):
        depth = len(path.relative_to(folder).parts) - 1
        text = with_relative_imports(path.read_text(encoding="utf-8"), depth)
        if path == folder / "_schemas.py":
            text = text.replace('NAMESPACE = "stc_kernels"', f'NAMESPACE = "{namespace()}"')
        path.write_text(text, encoding="utf-8")
    if library is not None:
        shutil.copy(library, folder)
    metadata = {
        "id": f"_{namespace()}_{re.sub(r'[^a-z0-9]', '_', variant)}",
        "name": "stc-kernels",
        "version": 0,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": backend},
    }
    text = json.dumps(metadata, indent=2) + "\n"
    (folder / "metadata.json").write_text(text, encoding="utf-8")
    return folder


def main() -> None:
    """Read the command line and write the package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--library", type=Path, help="stc_kernels/_C.*.so with this namespace")
    parser.add_argument("--backend", default="cpu", help="of the library: cpu, or such as cu130")
    arguments = parser.parse_args()
    print(f"namespace: {namespace()}")
    for backend in ("cpu", "cuda", "rocm"):
        print(write_variant(arguments.out, f"torch-{backend}", backend, None))
    if arguments.library is not None:
        system = f"{platform.machine()}-{platform.system().lower()}"
        variant = f"torch-stable-abi{STABLE_ABI}-{arguments.backend}-{system}"
        backend = "cuda" if arguments.backend.startswith("cu") else arguments.backend
        print(write_variant(arguments.out, variant, backend, arguments.library))


if __name__ == "__main__":
    main()
