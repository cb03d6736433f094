# SPDX-License-Identifier: Apache-2.0
"""Time of a cached frame as a fraction of a dense one, on a CPU.

The dense tower is the unpatched Hugging Face model with scaled-dot-product attention, once as it is
and once under `torch.compile`. Dense, compiled and cached frames alternate in one process, so that
the ratios hold when the machine's speed drifts.

    python benchmarks/cpu_cacher.py --out benchmarks/results/cpu_cacher.csv
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from environment import environment, write_rows
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import stc_kernels
import stc_video
from stc_video import CacheConfig

PATCH = 14
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make_tower(layers: int, dtype: torch.dtype) -> nn.Module:
    """SigLIP-so400m with random weights: 1152 wide, 16 heads, MLP 4304, 729 tokens."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=layers,
        num_attention_heads=16,
        image_size=384,
        patch_size=PATCH,
        vision_use_head=False,
        attn_implementation="sdpa",
    )
    return SiglipVisionModel(config).eval().to(dtype)


def frames_with_changes(fraction: float, dtype: torch.dtype) -> list[Tensor]:
    """Two frames that differ in the given fraction of their 27 x 27 patches."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand((1, 3, 384, 384), generator=generator)
    second = first.clone()
    for patch in torch.randperm(729, generator=generator)[: math.floor(fraction * 729)].tolist():
        row, column = divmod(patch, 27)
        area = (
            ...,
            slice(row * PATCH, (row + 1) * PATCH),
            slice(column * PATCH, (column + 1) * PATCH),
        )
        second[area] = torch.rand((1, 3, PATCH, PATCH), generator=generator)
    return [first.to(dtype), second.to(dtype)]


def compiled_twin(tower: nn.Module, layers: int, dtype: torch.dtype) -> Callable[[Tensor], object]:
    """The dense tower once more, on the same weights, compiled."""
    twin = make_tower(layers, dtype)
    twin.load_state_dict(tower.state_dict(), assign=True)
    return torch.compile(twin)


def ratios_of(times: list[float], baseline: list[float]) -> list[float]:
    """Ratio of each pair, ascending."""
    return sorted(a / b for a, b in zip(times, baseline, strict=True))


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(
    policy: str, fraction: float, dtype_name: str, layers: int, repeats: int, compiled: bool
) -> dict[str, object]:
    """Alternate dense and cached frames and return one row of the table."""
    dtype = DTYPES[dtype_name]
    tower = make_tower(layers, dtype)
    stock = compiled_twin(tower, layers, dtype) if compiled else None
    if policy == "motion":
        config = CacheConfig(buckets=(fraction,), refresh=0.0, tail_layers=0)
    else:
        config = CacheConfig(policy="stc", ratio=fraction, interval=10**9)
    cacher = stc_video.attach_cacher(tower, config)
    frames = frames_with_changes(fraction, dtype)
    dense_times, compiled_times, cached_times = [], [], []

    def dense(frame: Tensor) -> None:
        with cacher.paused():
            tower(frame)

    with torch.inference_mode():
        tower(frames[0])
        for number in range(repeats + 1):
            frame = frames[(number + 1) % 2]
            dense_time = seconds(lambda: dense(frame))  # noqa: B023
            compiled_time = seconds(lambda: stock(frame)) if stock is not None else math.nan  # noqa: B023
            cached_time = seconds(lambda: tower(frame))  # noqa: B023
            record = cacher.last_frames[0]
            if record.kind != "cached":
                raise RuntimeError(f"frame {number} was {record.kind} ({record.reason})")
            if number:  # the first pair warms up
                dense_times.append(dense_time)
                compiled_times.append(compiled_time)
                cached_times.append(cached_time)
    ratios = ratios_of(cached_times, dense_times)
    of_compiled = ratios_of(cached_times, compiled_times)
    return {
        "policy": policy,
        "fraction": fraction,
        "dtype": dtype_name,
        "layers": layers,
        "encoded": int(record.encoded.count_nonzero())
        if policy == "motion"
        else int(fraction * 729),
        "dense_ms": round(1e3 * statistics.median(dense_times), 2),
        "cached_ms": round(1e3 * statistics.median(cached_times), 2),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_p20": round(ratios[len(ratios) // 5], 4),
        "ratio_p80": round(ratios[(4 * len(ratios)) // 5], 4),
        "compiled_ms": round(1e3 * statistics.median(compiled_times), 2),
        "ratio_to_compiled": round(statistics.median(of_compiled), 4),
        "limit": round(record.cost, 4),
        "backend": stc_kernels.available_backends("select_changed").available[0],
    }


def main() -> None:
    """Measure every combination asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["motion", "stc"])
    parser.add_argument("--fractions", nargs="+", type=float, default=[1 / 4, 1 / 8, 1 / 16])
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=27)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--no-compiled", action="store_true", help="leave torch.compile out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for dtype in arguments.dtypes:
        for policy in arguments.policies:
            for fraction in arguments.fractions:
                row = measure(
                    policy,
                    fraction,
                    dtype,
                    arguments.layers,
                    arguments.repeats,
                    not arguments.no_compiled,
                )
                print(row, flush=True)
                rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
