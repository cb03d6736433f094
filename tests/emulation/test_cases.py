# SPDX-License-Identifier: Apache-2.0
"""Every CUDA kernel has cases in the emulator, and every planted break still fits its source."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stc_kernels

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"emulation_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def launchers() -> set[str]:
    text = (CSRC / "cuda/launchers.h").read_text()
    return set(re.findall(r"^cudaError_t (\w+)\(", text, flags=re.MULTILINE))


def test_every_launcher_has_cases():
    """That every kernel of it runs in them is seen by run.py."""
    table = (HERE / "cases/table.cpp").read_text()
    listed = set(re.findall(r"X\((\w+)\)", table.partition("EACH_SPECIAL")[0])) - {"X"}
    run = script("run")
    assert launchers() == listed == set(run.CASES)
    special = set(re.findall(r"X\((\w+)\)", table.partition("EACH_SPECIAL")[2])) - {"X"}
    assert special == set(run.SPECIAL)
    assert all(min(counts) > 0 for counts in run.CASES.values())


def test_every_operator_is_called_through_its_binding():
    calls = "".join(path.read_text() for path in (HERE / "cases").glob("*.cpp"))
    assert set(re.findall(r'check_bound\(\s*c,\s*"(\w+)"', calls)) == set(stc_kernels.OPS)


def test_every_break_fits_its_source():
    mutants = script("mutants")
    found = mutants.read_mutants()
    assert len(found) > 50
    assert len({mutant.name for mutant in found}) == len(found)
    for mutant in found:
        assert mutants.broken(mutant, CSRC) != (CSRC / mutant.file).read_text(), mutant.name


@pytest.mark.parametrize(
    ("statement", "call"),
    [
        ('asm volatile("cp.async.wait_all;");', "emu::ptx::run_cp_async_wait_all();"),
        (
            'asm volatile("mma.x {%1, %0}, [%2], 16;\\n" : "+f"(a[0]), "=r"(b(1, 2)) : "l"(c));',
            "emu::ptx::run_mma_x(b(1, 2), a[0], c, 16);",
        ),
        ('asm volatile(\n  "f.g "\n  "%0;" :: "r"(x ? 1 : 0));', "emu::ptx::run_f_g(x ? 1 : 0);"),
    ],
)
def test_asm_statements_become_calls_in_the_same_lines(statement, call):
    before = f"// a\n#include <x>\nint f() {{ {statement} }}\n"
    after = script("rewrite_asm").rewrite(before)
    head, _, rest = after.partition("#line 2\n")
    assert head == '// a\n#include "emu_ptx.h"\n'
    assert rest.replace("\n", "") == f"#include <x>int f() {{ {call} }}"
    assert rest.count("\n") == before.count("\n") - 1


def test_asm_of_two_instructions_is_refused():
    with pytest.raises(SystemExit, match="one instruction a statement"):
        script("rewrite_asm").rewrite('#include <x>\nasm volatile("a %0; b %0;" : "=r"(x));')
