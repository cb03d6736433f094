# SPDX-License-Identifier: Apache-2.0
"""Measure launch parameters and backends of the operators on a GPU and store them as data.

``python -m stc_kernels.tune`` tries every candidate of every Triton kernel on the shapes that
vision towers and pruners have, then every backend of every operator, and writes what is fastest
into ``configs/<device>.json`` beside the package, which every later process reads. Delete the file
to go back to ``configs/heuristic.json`` and the fixed order of the backends.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from stc_kernels import _dispatch, _examples, _measured, _triton, _tuning
from stc_kernels._examples import Geometry
from stc_kernels._tuning import Parameters, Shape

#: kernel -> the operator it is measured by
_MEASURED_BY = {
    "token_cosine": "token_cosine",
    "select": "select_changed",
    "move_rows": "gather_rows",
    "layer_norm": "gather_layer_norm",
    "scatter_residual": "scatter_residual",
    "attention": "sparse_query_attention",
    "attention_float32": "sparse_query_attention",
    "bias_gelu": "bias_gelu",
    "channel_variance": "channel_variance",
    "saliency": "saliency_topk",
    "spatial_redundancy": "spatial_redundancy",
    "scan": "compact_tokens",
    "match": "bipartite_match",
    "match_float32": "bipartite_match",
    "merge": "merge_tokens",
    "patches": "frames_to_patches",
    "column_mean": "attention_column_mean",
    "column_mean_float32": "attention_column_mean",
}

#: types that backends are compared in: one of 32 bits, one of 16
_DTYPES = (torch.bfloat16, torch.float32)
#: backends that are compared
_COMPARED = ("native", "triton")


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m stc_kernels.tune", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--op", nargs="+", choices=_triton.OPS, help="default: all operators")
    parser.add_argument("--only", choices=("kernels", "backends"), help="default: both")
    names = (*_examples.TOWERS, *_examples.FEATURES)
    parser.add_argument("--geometry", nargs="+", choices=names, help="default: all geometries")
    parser.add_argument("--device", default="cuda", help="such as cuda:1; default: cuda")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8, 64], help="batch sizes")
    parser.add_argument("--out", type=Path, help="default: the file that the package reads")
    arguments = parser.parse_args(argv)
    if reason := _triton.why_unavailable("token_cosine", torch.device(arguments.device).type):
        print(f"stc_kernels.tune: nothing can be measured on {arguments.device}: {reason}",
              file=sys.stderr)  # fmt: skip
        return 2
    if _triton.interpreted():
        print("stc_kernels.tune: unset TRITON_INTERPRET; the interpreter's times say nothing",
              file=sys.stderr)  # fmt: skip
        return 2
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device)
    path = arguments.out or _tuning.config_path(name)
    ops = arguments.op or _triton.OPS
    if arguments.only != "backends":
        for kernel, op in _kernels_of(ops):
            shapes = list(_shapes(op, arguments.batch, arguments.geometry or names))
            entries = [tune_kernel(kernel, op, geometry, device) for geometry in shapes]
            if entries:
                write_entries(path, "kernels", kernel, entries, name)
    if arguments.only != "kernels":
        for op in ops:
            shapes = list(_shapes(op, arguments.batch, arguments.geometry or names))
            entries = [
                row for dtype in _DTYPES for row in compare_backends(op, shapes, dtype, device)
            ]
            if entries:
                write_entries(path, "backends", op, entries, name)
    print(f"written to {path}")
    return 0


def _kernels_of(ops: tuple[str, ...] | list[str]) -> Iterator[tuple[str, str]]:
    """Kernels whose parameters the operators look up, each with the operator that measures it."""
    from stc_kernels._triton._candidates import TUNED_KERNELS

    kernels = {kernel for op in ops for kernel in TUNED_KERNELS[op]}
    for kernel, op in _MEASURED_BY.items():
        if kernel in kernels:
            yield kernel, op


def _shapes(op: str, batches: list[int], names: Collection[str]) -> Iterator[Geometry]:
    for name, geometry in _examples.geometries(op).items():
        for batch in batches if name in names else ():
            yield Geometry(geometry.tokens, geometry.channels, geometry.k, geometry.heads, batch)


def tune_kernel(kernel: str, op: str, geometry: Geometry, device: torch.device) -> dict[str, Any]:
    """Measure all candidates of a kernel on one geometry; return the entry of the fastest."""
    from stc_kernels._triton._candidates import CANDIDATES

    dtype = torch.float32 if kernel.endswith("float32") else torch.bfloat16
    values = _examples.arguments(op, geometry, dtype, device)
    times: list[tuple[float, Parameters]] = []
    shape: Shape = {}
    for parameters in CANDIDATES[kernel]:
        with _tuning.forced(kernel, parameters) as seen:
            microseconds = _measure(op, values)
        shape = seen[0]
        times.append((microseconds, parameters))
    best, parameters = min(times, key=lambda time: time[0])
    worst = max(times, key=lambda time: time[0])[0]
    print(f"{kernel:18} {shape}: {best:.1f} us, slowest {worst:.1f} us, {parameters}", flush=True)
    return {"shape": shape, "parameters": parameters, "microseconds": round(best, 2)}


def compare_backends(
    op: str, shapes: list[Geometry], dtype: torch.dtype, device: torch.device
) -> list[_measured.Row]:
    """Measure an operator on every backend that can run; a row for each geometry."""
    found = _dispatch.available_backends(op, device.type)
    backends = [name for name in _COMPARED if name in found]
    for name in _COMPARED:
        if name not in found:
            print(f"{op:18} {name} is not measured: {found.unavailable[name]}", flush=True)
    measured = []
    for geometry in shapes:
        values = _examples.arguments(op, geometry, dtype, device)
        times = {name: round(_measure(op, values, name), 2) for name in backends}
        row = {"shape": list(values[0].shape), "bits": 8 * values[0].element_size()}
        print(f"{op:18} {row['shape']} {dtype}: {times}", flush=True)
        measured.append({**row, "microseconds": times})
    return measured


def _measure(op: str, values: tuple[Any, ...], backend: str = "triton") -> float:
    """Median time of an operator in microseconds, with a cold L2 cache."""
    from triton.testing import do_bench

    function = _dispatch.function_of(op, backend)
    milliseconds: float = do_bench(
        lambda: function(*values), warmup=5, rep=30, return_mode="median"
    )
    return 1000.0 * milliseconds


def write_entries(
    path: Path, section: str, name: str, entries: list[dict[str, Any]], device_name: str
) -> None:
    """Replace the entries of a kernel or operator for the same calls; the file is always whole."""
    content: dict[str, Any] = {"kernels": {}, "backends": {}}
    if path.exists():
        content |= json.loads(path.read_text(encoding="utf-8"))

    def call(entry: dict[str, Any]) -> tuple[Any, Any]:
        return entry["shape"], entry.get("bits")

    calls = [call(entry) for entry in entries]
    kept = [entry for entry in content[section].get(name, []) if call(entry) not in calls]
    content[section][name] = kept + entries
    content |= {"device": device_name, "measured": True, "torch": torch.__version__}
    content["triton"] = sys.modules["triton"].__version__ if "triton" in sys.modules else None
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    _tuning.forget()
    _dispatch.forget()


if __name__ == "__main__":
    sys.exit(main())
