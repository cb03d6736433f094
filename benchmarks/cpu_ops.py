# SPDX-License-Identifier: Apache-2.0
"""Native CPU operators next to what one would write in plain PyTorch.

Every pair is checked for equal results first, then timed in alternation, so that whatever else the
machine does hits both. Run it with::

    python benchmarks/cpu_ops.py            # writes benchmarks/results/cpu_ops.csv
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from environment import environment, write_rows
from plain_ops import PLAIN

import stc_kernels as stc

RESULTS = Path(__file__).parent / "results" / "cpu_ops.csv"
KEEP = 64
SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)


class Case(NamedTuple):
    """One operator, on one input, against its baseline."""

    op: str
    baseline_name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    native: Callable[[], torch.Tensor]
    baseline: Callable[[], torch.Tensor]


def select_case(dtype: torch.dtype) -> Case:
    x = torch.randn(1, 729, 1152)
    y = (x + 0.3 * torch.randn_like(x)).to(dtype)
    x = x.to(dtype)
    k = 182

    def plain() -> torch.Tensor:
        similarity = F.cosine_similarity(x, y, dim=-1)
        return similarity.topk(k, largest=False).indices.sort(-1).values

    return Case(
        "select_changed",
        "cosine_similarity + topk + sort",
        tuple(x.shape),
        dtype,
        lambda: stc.select_changed(x, y, k)[0],
        plain,
    )


def low_variance_mask(variance: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros(variance.numel(), dtype=torch.bool)
    half = variance.numel() // 2
    mask[variance.topk(half, largest=False, sorted=False).indices] = True
    return mask


def plain_scores(tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    unit = F.normalize(tokens.float(), dim=-1)
    frame = unit.mean(1, keepdim=True)
    past = F.normalize(memory.float(), dim=0)

    def closeness(anchor: torch.Tensor) -> torch.Tensor:
        distance = ((unit - anchor) ** 2).sum(-1)
        return sum(torch.exp(-distance / (2 * s)) for s in SCALES)

    return (closeness(past) + closeness(frame)).topk(KEEP, largest=False).indices.sort(-1).values


def saliency_cases(frames: int, dtype: torch.dtype) -> list[Case]:
    tokens = (torch.randn(frames, 196, 3584) + torch.randn(3584)).to(dtype)
    memory = torch.randn(3584)
    mask = low_variance_mask(stc.channel_variance(tokens))
    chosen = mask.nonzero().squeeze(1)
    memory_part = memory[chosen]

    def plain_whole() -> torch.Tensor:
        variance = tokens.flatten(0, 1).float().var(0, unbiased=False)
        channels = variance.topk(variance.numel() // 2, largest=False).indices
        return plain_scores(tokens[..., channels], memory[channels])

    def native_whole() -> torch.Tensor:
        channels = low_variance_mask(stc.channel_variance(tokens))
        return stc.saliency_topk(tokens, memory, KEEP, channels=channels)[0]

    shape = tuple(tokens.shape)
    return [
        Case(
            "channel_variance + low half + saliency_topk",
            "var + topk + normalise + gaussian + topk + sort",
            shape,
            dtype,
            native_whole,
            plain_whole,
        ),
        Case(
            "saliency_topk",
            "normalise + gaussian + topk + sort",
            shape,
            dtype,
            lambda: stc.saliency_topk(tokens, memory, KEEP, channels=mask)[0],
            lambda: plain_scores(tokens[..., chosen], memory_part),
        ),
    ]


def row_cases(dtype: torch.dtype) -> list[Case]:
    x, update = torch.randn(1, 729, 1152).to(dtype), torch.randn(1, 729, 1152).to(dtype)
    indices = torch.randperm(729)[:182].sort().values.int()[None]
    at = indices[0].long()
    weight, bias, rows = torch.randn(1152), torch.randn(1152), torch.randn(1, 182, 1152).to(dtype)

    def plain_norm() -> torch.Tensor:
        return F.layer_norm(x[:, at].float(), (1152,), weight, bias, 1e-6).to(dtype)

    def plain_residual() -> torch.Tensor:
        merged = update.clone()
        merged[:, at] = rows
        return x + merged

    def case(op: str, name: str, native: Callable, plain: Callable) -> Case:
        return Case(op, name, tuple(x.shape), dtype, native, plain)

    return [
        case("gather_rows", "x[:, i]", lambda: stc.gather_rows(x, indices), lambda: x[:, at]),
        case(
            "gather_layer_norm",
            "x[:, i] + layer_norm",
            lambda: stc.gather_layer_norm(x, indices, weight, bias, 1e-6),
            plain_norm,
        ),
        case(
            "scatter_residual",
            "clone + index_put + add",
            lambda: stc.scatter_residual(x, update, indices, rows),
            plain_residual,
        ),
    ]


def pruning_cases(dtype: torch.dtype) -> list[Case]:
    """The operators that the other pruners are made of, on frames of LLaVA-OneVision."""
    frames, height, width = 8, 14, 14
    tokens = torch.randn(frames, height * width, 3584).to(dtype)
    grid = tokens.unflatten(1, (height, width))
    keep = torch.rand(tokens.shape[:2]) < 0.3
    kept, half = int(keep.sum()), height * width // 2
    source_map, _, _ = stc.bipartite_match(tokens, half)
    query, key = (torch.randn(frames, height * width, 16, 72).to(dtype) for _ in range(2))
    scale = 72**-0.5

    def case(op: str, name: str, shape: torch.Size, native: Callable, *arguments: Any) -> Case:
        return Case(op, name, tuple(shape), dtype, native, lambda: first(PLAIN[op](*arguments)))

    def first(out: Any) -> torch.Tensor:
        return out[0] if isinstance(out, tuple) else out

    return [
        case(
            "spatial_redundancy",
            "normalise + shifted products + amax",
            grid.shape,
            lambda: stc.spatial_redundancy(grid),
            grid,
            None,
        ),
        case(
            "compact_tokens",
            "sort + x[i]",
            tokens.shape,
            lambda: stc.compact_tokens(tokens, keep, kept)[0],
            tokens,
            keep,
            kept,
        ),
        Case(
            "bipartite_match",
            "normalise + matmul + max + argsort",
            tuple(tokens.shape),
            dtype,
            lambda: stc.bipartite_match(tokens, half)[2][:, ::2],
            lambda: PLAIN["bipartite_match"](tokens, half, 0)[2][:, ::2],
        ),
        case(
            "merge_tokens",
            "scatter_add + divide",
            tokens.shape,
            lambda: stc.merge_tokens(tokens, source_map, half)[0],
            tokens,
            source_map,
            half,
            None,
        ),
        case(
            "attention_column_mean",
            "matmul + softmax + mean",
            query.shape,
            lambda: stc.attention_column_mean(query, key, scale=scale),
            query,
            key,
            scale,
        ),
    ]


def check(case: Case) -> None:
    """Stop unless ours equals the reference, and in float32 also what it is timed against.

    A plain chain in half precision also computes its scores in half precision, where many tie.
    """
    ours = case.native()
    with stc.use_backend("reference"):
        expected = {"the reference": case.native()}
    if case.dtype == torch.float32:
        expected["the baseline"] = case.baseline()
    for name, theirs in expected.items():
        if ours.is_floating_point():
            torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-4)
            continue
        pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
        differing = sum(len(set(a) ^ set(b)) for a, b in pairs)
        # Two scores closer than 1e-5 may change places.
        if differing > 0.004 * ours.numel() + 2:
            raise SystemExit(f"{case.op} {case.dtype}: {differing} indices differ from {name}")


def measure(case: Case, seconds: float) -> dict[str, list[float]]:
    """Time both in alternation for about so many seconds; microseconds."""
    functions = {"native": case.native, "baseline": case.baseline}
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["native"]) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append((time.perf_counter() - start) * 1e6)
    return times


def rows_of(case: Case, times: dict[str, list[float]]) -> list[dict[str, object]]:
    base = statistics.median(times["baseline"])
    rows = []
    for backend, samples in times.items():
        low, middle, high = (statistics.quantiles(samples, n=10)[i] for i in (1, 4, 7))
        rows.append(
            {
                "op": case.op,
                "shape": "x".join(map(str, case.shape)),
                "dtype": str(case.dtype).removeprefix("torch."),
                "backend": backend if backend == "native" else "torch",
                "baseline": case.baseline_name,
                "median_us": round(middle, 1),
                "p20_us": round(low, 1),
                "p80_us": round(high, 1),
                "ratio_vs_baseline": round(base / middle, 2),
                "samples": len(samples),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="per case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    info = stc.build_info()
    if not info["native"]:
        raise SystemExit(f"nothing to measure: {info['reason']}")
    facts = {**environment(), "cpu_capability": info["cpu_capability"]}
    facts = {("cpu" if name == "device" else name): value for name, value in facts.items()}
    table = []
    with torch.inference_mode(), stc.use_backend("native"):
        cases = [
            select_case(torch.float32),
            select_case(torch.bfloat16),
            *saliency_cases(8, torch.float32),
            *saliency_cases(1, torch.float32),
            *saliency_cases(8, torch.bfloat16),
            *row_cases(torch.float32),
            *row_cases(torch.bfloat16),
            *pruning_cases(torch.float32),
            *pruning_cases(torch.bfloat16),
        ]
        for case in cases:
            check(case)
            for row in rows_of(case, measure(case, arguments.seconds)):
                table.append({**row, **facts})
            native = table[-2]
            print(
                f"{case.op:44} {native['shape']:12} {native['dtype']:9}"
                f"{native['median_us']:>10} us {native['ratio_vs_baseline']:>7}x"
            )
    write_rows(arguments.out, table)


if __name__ == "__main__":
    main()
