# SPDX-License-Identifier: Apache-2.0
"""A stream of many pruned frames through the ReKV memory: bytes, process memory, latency.

Frames are random embeddings with some likeness from one to the next; the language model is small,
with random weights. All three stores are in use; the oldest frames are forgotten. Latencies are
medians over the first and the last tenth of the stream after the stores are full.

    python benchmarks/long_stream.py --frames 20000 --out benchmarks/results/long_stream.csv
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from environment import environment, write_rows
from torch import Tensor
from transformers import Qwen2Config, Qwen2Model

from stc_video.memory import Frame, RekvConfig, RekvMemory

WIDTH, TOKENS, PROMPT = 128, 64, 16


def make_model(device: str) -> Qwen2Model:
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100,
    )  # fmt: skip
    return Qwen2Model(config).eval().to(device)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def run(arguments: argparse.Namespace, folder: str) -> dict[str, object]:
    """Push all frames, asking now and then."""
    block = 4 * 2 * 2 * TOKENS * (WIDTH // 4) * 4
    budgets = {"device": 64 * block, "host": 512 * block, "disk": 2048 * (block + 1024)}
    config = RekvConfig(
        window_tokens=16 * TOKENS, retrieve_tokens=16 * TOKENS, device_bytes=budgets["device"],
        host_bytes=budgets["host"], disk_bytes=budgets["disk"], disk_folder=folder,
        slab_bytes=64 * block, eviction=arguments.eviction, storage=arguments.storage,
    )  # fmt: skip
    memory = RekvMemory(make_model(arguments.device), config)
    generator = torch.Generator().manual_seed(0)

    def noise(count: int) -> Tensor:
        return torch.randn((count, WIDTH), generator=generator).to(arguments.device)

    memory.begin(noise(8))
    prompt, content, process = noise(PROMPT), noise(TOKENS), psutil.Process()
    push, ask, resident = [], [], []
    full = 16 + 64 + 512 + 2048
    if arguments.frames < 2 * full:
        raise SystemExit(f"--frames must be at least {2 * full}, so that the stores fill up")
    for number in range(arguments.frames):
        content = 0.9 * content + 0.4 * noise(TOKENS)
        frame = Frame(content, torch.arange(TOKENS), TOKENS, number)
        push.append(milliseconds(lambda: memory.append([frame])))  # noqa: B023
        for name, budget in budgets.items():
            if memory.nbytes()[name] > budget:
                raise RuntimeError(f"frame {number}: the {name} store passes its budget")
        if number % 50 == 49:
            ask.append((number, milliseconds(lambda: memory.context(prompt, slice(4, 12), "?"))))
            resident.append((number, process.memory_info().rss))
    tenth = (arguments.frames - full) // 10
    first, last = range(full, full + tenth), range(arguments.frames - tenth, arguments.frames)

    def ratio(values: dict[int, float]) -> float:
        ends = [statistics.median(v for n, v in values.items() if n in part)
                for part in (first, last)]  # fmt: skip
        return round(ends[1] / ends[0], 4)

    row: dict[str, object] = {
        "frames": arguments.frames,
        "eviction": arguments.eviction,
        "storage": arguments.storage,
        "push_ms": round(statistics.median(push), 3),
        "push_last_to_first": ratio(dict(enumerate(push))),
        "ask_ms": round(statistics.median(value for _, value in ask), 3),
        "ask_last_to_first": ratio(dict(ask)),
        "resident_last_to_first": ratio(dict(resident)),
        "evicted": memory.evicted,
        **{f"{name}_bytes": value for name, value in memory.nbytes().items()},
        **{f"{name}_budget": value for name, value in budgets.items()},
    }
    memory.clear()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=20_000)
    parser.add_argument("--eviction", choices=["oldest", "redundant"], default="oldest")
    parser.add_argument("--storage", choices=["exact", "int8"], default="exact")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        row = run(arguments, folder)
    print(row)
    if arguments.out is not None:
        write_rows(arguments.out, [row | environment()])


if __name__ == "__main__":
    main()
