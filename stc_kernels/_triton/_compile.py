# SPDX-License-Identifier: Apache-2.0
"""Ahead-of-time compilation of a launch for any GPU, without having one."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stc_kernels._triton import interpreted
from stc_kernels._triton._launch import Launch

#: architecture -> what Triton calls it, and the shared memory of a block in bytes
TARGETS: dict[str, tuple[GPUTarget, int]] = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


@dataclass(frozen=True)
class Accesses:
    """The instructions of a kernel that read and write global memory: bytes each -> how many.

    Bytes are those of one thread. ``local`` counts instructions that go to local memory instead,
    which holds what found no register.
    """

    loads: dict[int, int]
    stores: dict[int, int]
    local: int

    @property
    def per_kib(self) -> float:
        """Instructions for each KiB that a thread reads or writes: 64 if all move 16 bytes."""
        every = (*self.loads.items(), *self.stores.items())
        moved = sum(size * number for size, number in every)
        return 1024 * sum(number for _, number in every) / moved if moved else 0.0


@dataclass(frozen=True)
class Resources:
    """Resources of a compiled kernel: registers of a thread, bytes of memory, accesses to it."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    stack_bytes: int
    accesses: Accesses


_GLOBAL = re.compile(r"\b(ld|st)\.global(?:\.(?!v\d|[busf]\d)[\w:]+)*(?:\.v(\d))?\.[busf](\d+)")
_ASYNC = re.compile(r"\bcp\.async\.c[ag]\.shared\.global\b[^,]*,[^,]*, (0x[0-9a-f]+|\d+)")
_AMD_GLOBAL = re.compile(r"^\s*(?:global|buffer|flat)_(load|store)_(?:lds_)?(\w+)", re.MULTILINE)
_AMD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "short": 2, "byte": 1}


def nvidia_accesses(ptx: str) -> Accesses:
    """Count the accesses in PTX by their width."""
    found: dict[str, Counter[int]] = {"ld": Counter(), "st": Counter()}
    for kind, lanes, bits in _GLOBAL.findall(ptx):
        found[kind][int(lanes or 1) * int(bits) // 8] += 1
    for size in _ASYNC.findall(ptx):
        found["ld"][int(size, 0)] += 1
    local = len(re.findall(r"\b(?:ld|st)\.local\b", ptx))
    return Accesses(dict(found["ld"]), dict(found["st"]), local)


def amd_accesses(assembly: str) -> Accesses:
    """Count the accesses in AMD's assembly by their width."""
    found: dict[str, Counter[int]] = {"load": Counter(), "store": Counter()}
    for kind, what in _AMD_GLOBAL.findall(assembly):
        # ubyte, sbyte_d16, short_d16_hi and so on
        size = next(size for name, size in _AMD_BYTES.items() if name in what)
        found[kind][size] += 1
    local = len(re.findall(r"^\s*scratch_(?:load|store)", assembly, re.MULTILINE))
    return Accesses(dict(found["load"]), dict(found["store"]), local)


def compile_launch(launch: Launch, target: str) -> Resources:
    """Compile one launch for an architecture and read what it needs.

    Parameters
    ----------
    launch
        As recorded; its tensors may be on the meta device, and count as aligned to 16 bytes.
    target
        A key of ``TARGETS``.

    Raises
    ------
    RuntimeError
        If this process runs kernels in the interpreter.
    """
    if interpreted():
        raise RuntimeError("kernels cannot be compiled while TRITON_INTERPRET is set; unset it")
    gpu, _ = TARGETS[target]
    compiled = triton.compile(source_of(launch), target=gpu, options=dict(launch.options))
    if gpu.backend == "hip":
        return _amd_resources(compiled.asm["amdgcn"], compiled.metadata.shared)
    accesses = nvidia_accesses(compiled.asm["ptx"])
    return _nvidia_resources(compiled.asm["cubin"], compiled.metadata.shared, accesses)


def source_of(launch: Launch) -> ASTSource:
    """Specialise a kernel for a launch's arguments, as Triton does when it launches."""
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    given = dict(zip(launch.kernel.arg_names, launch.arguments, strict=False)) | launch.constants
    for position, name in enumerate(launch.kernel.arg_names):
        value = given[name]
        if name in launch.constants or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            constants[(position,)] = value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, constants, attributes)


def _type_of(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{_TYPES[value.dtype]}"
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def _nvidia_resources(cubin: bytes, shared: int, accesses: Accesses) -> Resources:
    """Ask ``cuobjdump``, which Triton brings along."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(\w+):(\d+)", text)}
    # These kernels have no arrays of their own in local memory: what is there was spilt.
    local = found["LOCAL"] + found["STACK"]
    return Resources(found["REG"], local, shared, found["STACK"], accesses)


def _amd_resources(assembly: str, shared: int) -> Resources:
    """Read the metadata at the end of the assembly."""

    def value(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        if found is None:
            raise ValueError(f"no {name} in the compiled kernel")
        return int(found.group(1))

    spills = 4 * (value("vgpr_spill_count") + value("sgpr_spill_count"))
    stack = value("private_segment_fixed_size")
    return Resources(value("vgpr_count"), spills, shared, stack, amd_accesses(assembly))
