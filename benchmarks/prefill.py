# SPDX-License-Identifier: Apache-2.0
"""Time to take frames into a language model: 64 of 196 tokens per frame against all of them.

The baseline is the stock Hugging Face model with all tokens, in whichever way is faster: all frames
in one pass, or as many at a time as the session takes. Both sides run in turn in one process, so
that the ratio holds when the machine's speed drifts. Random weights, the geometry of Qwen2-0.5B
(or 7B with --geometry).

    python benchmarks/prefill.py --out benchmarks/results/prefill.csv
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from environment import environment, write_rows
from torch import Tensor
from transformers import DynamicCache, Qwen2Config, Qwen2Model

from stc_video.memory import Frame, PlainConfig, RekvConfig, make_memory

GEOMETRIES = {
    "qwen2-0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                       num_attention_heads=14, num_key_value_heads=2),
    "qwen2-7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                     num_attention_heads=28, num_key_value_heads=4),
}  # fmt: skip
PREFIX, TOKENS = 14, 196


def make_model(geometry: str, layers: int | None, device: str, dtype: torch.dtype) -> Qwen2Model:
    torch.manual_seed(0)
    settings = dict(GEOMETRIES[geometry])
    if layers is not None:
        settings["num_hidden_layers"] = layers
    config = Qwen2Config(
        vocab_size=1000, max_position_embeddings=32768, rope_parameters={
            "rope_type": "default", "rope_theta": 1_000_000.0,
        }, attn_implementation="sdpa", **settings,
    )  # fmt: skip
    with torch.device(device):
        return Qwen2Model(config).eval().to(dtype)


def stock(
    model: Qwen2Model, prefix: Tensor, frames: Tensor, at_a_time: int
) -> Callable[[], object]:
    """Begin a stream; return what takes in all frames, un-pruned."""
    cache = DynamicCache()
    model(inputs_embeds=prefix[None], past_key_values=cache, use_cache=True)

    def prefill() -> None:
        for part in frames.split(at_a_time):
            model(inputs_embeds=part.flatten(0, 1)[None], past_key_values=cache, use_cache=True)

    return prefill


def ours(
    model: Qwen2Model, prefix: Tensor, frames: Tensor, chunk: int, memory: str
) -> Callable[[], object]:
    """Begin a stream; return what takes in the kept tokens (F, K, D) as a session does."""
    config = PlainConfig() if memory == "plain" else RekvConfig()
    held = make_memory(model, config)
    held.begin(prefix)
    kept = frames.shape[1]
    made = [Frame(frame, torch.arange(kept), kept, i) for i, frame in enumerate(frames)]

    def prefill() -> None:
        for first in range(0, len(made), chunk):
            held.append(made[first : first + chunk])

    return prefill


def seconds(call: Callable[[], object], device: str) -> float:
    start = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per number of frames."""
    dtype = getattr(torch, arguments.dtype)
    model = make_model(arguments.geometry, arguments.layers, arguments.device, dtype)
    width = model.config.hidden_size
    generator = torch.Generator().manual_seed(0)

    def embeds(*shape: int) -> Tensor:
        made = torch.randn((*shape, width), generator=generator)
        return made.to(arguments.device, dtype)

    prefix = embeds(PREFIX)
    for count in arguments.frames:
        frames = embeds(count, TOKENS)
        pruned = frames[:, : arguments.tokens].contiguous()
        ways = {"one pass": count, f"{arguments.chunk} frames": min(arguments.chunk, count)}
        times: dict[str, list[float]] = {name: [] for name in (*ways, "ours")}
        # Long ones take minutes and need no warm-up of their own.
        repeats = max(1, min(arguments.repeats, 64 // count))
        for number in range(repeats + (count <= 16)):
            taken = {
                name: seconds(stock(model, prefix, frames, n), arguments.device)
                for name, n in ways.items()
            }
            taken["ours"] = seconds(
                ours(model, prefix, pruned, arguments.chunk, arguments.memory), arguments.device
            )
            if number or count > 16:
                for name, value in taken.items():
                    times[name].append(value)
        median = {name: statistics.median(values) for name, values in times.items()}
        baseline = min(ways, key=lambda name: median[name])
        ratios = [o / b for o, b in zip(times["ours"], times[baseline], strict=True)]
        yield {
            "geometry": arguments.geometry,
            "layers": model.config.num_hidden_layers,
            "dtype": arguments.dtype,
            "memory": arguments.memory,
            "frames": count,
            "tokens_per_frame": f"{arguments.tokens} of {TOKENS}",
            "prefill_chunk": arguments.chunk,
            "repeats": len(ratios),
            "baseline": baseline,
            "baseline_ms": round(1e3 * median[baseline], 1),
            "ours_ms": round(1e3 * median["ours"], 1),
            "ratio": round(statistics.median(ratios), 4),
            "ratio_worst": round(max(ratios), 4),
            "limit": round(arguments.tokens / TOKENS, 4),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="qwen2-0.5b")
    parser.add_argument("--frames", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--tokens", type=int, default=64, help="kept of each frame")
    parser.add_argument("--chunk", type=int, default=8, help="frames per pass")
    parser.add_argument("--memory", choices=["rekv", "plain"], default="rekv")
    parser.add_argument("--layers", type=int, help="fewer, for a quick look")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    with torch.inference_mode():
        for row in measure(arguments):
            print(row, flush=True)
            rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
