# SPDX-License-Identifier: Apache-2.0
"""Helpers: what a library needs and offers, read with binutils."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

#: the fixture `run` of conftest.py
Run = Callable[..., subprocess.CompletedProcess[str]]

#: all that the library may be linked to
ALLOWED = re.compile(r"(libtorch_cpu|libstdc\+\+|libm|libgcc_s|libc|ld-linux.*)\.so[.\d]*$")
UNSTABLE = re.compile(r"\b(at|c10|torch)::")

#: run by an interpreter that finds the package; fails where native and reference disagree
COMPARE = """
import torch, stc_kernels as stc
print(stc.build_info()["cpu_capability"])
torch.manual_seed(0)
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x, y = torch.randn(2, 40, 77).to(dtype), torch.randn(40, 77).to(dtype)
    some = torch.rand(77) < 0.5
    def answers():
        indices, similarity = stc.select_changed(x, y, 9, pinned=1)
        rows = stc.gather_layer_norm(x, indices, None, None, 1e-6)
        picked, scores = stc.saliency_topk(x, torch.ones(77), 9, channels=some)
        merged = stc.scatter_residual(x, y, indices, stc.gather_rows(x, indices))
        return indices, similarity, rows, picked, scores, merged, stc.channel_variance(x)
    with stc.use_backend("native"):
        ours = answers()
    with stc.use_backend("reference"):
        theirs = answers()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2 if a.dtype != torch.float32 else 1e-5, atol=1e-5)
"""


def binutils(name: str, *arguments: object) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def assert_stable_abi(library: Path) -> None:
    """Only the C interface of torch is used, and only the module entry is offered."""
    undefined = binutils("nm", "-DC", "--undefined-only", library).splitlines()
    assert not [line for line in undefined if UNSTABLE.search(line)]
    defined = binutils("nm", "-D", "--defined-only", library).split()
    assert [name for name in defined if name == "PyInit__C"]
    assert len(defined) == 3, "address, type and name of one symbol"
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", binutils("readelf", "-d", library))
    assert [name for name in needed if not ALLOWED.fullmatch(name)] == []


def shared_code(objects: list[Path], isa: str) -> list[str]:
    """Names in objects of one instruction set that the linker may swap for another's."""
    lines = [line for at in objects for line in binutils("nm", "-C", at).splitlines()]
    return [line for line in lines if re.search(r" [WVu] ", line) and f"stc::{isa}::" not in line]
