# SPDX-License-Identifier: Apache-2.0
"""A whole session against the stock model: frame latency, prefill, time to first token, memory.

Random weights in the geometry of LLaVA-OneVision-7B, for a GPU; `--geometry tiny --device cpu`
tries the script out. Frames are synthetic: a fixed picture in which a square moves. The stock
model encodes each frame densely and keeps all its tokens in a `DynamicCache`; where that runs out
of memory, or out of --stock-frames, its columns stay empty.

    python benchmarks/session.py --out benchmarks/results/session.csv
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from torch import Tensor
from transformers import DynamicCache, LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

import stc_video
from stc_video.memory import Frame, RekvConfig, make_memory
from stc_video.models.llava_onevision import VisionEncoder

GEOMETRIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "7b": (
        dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
             num_attention_heads=16, image_size=384),
        dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
             num_attention_heads=28, num_key_value_heads=4, vocab_size=152_000),
    ),
    "0.5b": (
        dict(hidden_size=1152, intermediate_size=4304, num_hidden_layers=26,
             num_attention_heads=16, image_size=384),
        dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
             num_attention_heads=14, num_key_value_heads=2, vocab_size=152_000),
    ),
    "tiny": (
        dict(hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
             image_size=384),
        dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=600),
    ),
}  # fmt: skip
PREFIX, PROMPT = 14, 32


class Bench:
    """One model and the pieces that are timed."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        vision, text = GEOMETRIES[arguments.geometry]
        torch.manual_seed(0)
        config = LlavaOnevisionConfig(
            vision_config={"model_type": "siglip_vision_model", "patch_size": 14,
                           "vision_use_head": False, **vision},
            text_config={"model_type": "qwen2", "max_position_embeddings": 1 << 20, **text},
            image_token_index=500, video_token_index=501,
        )  # fmt: skip
        self.device = torch.device(arguments.device)
        dtype = getattr(torch, arguments.dtype)
        default = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        with self.device:
            self.model = LlavaOnevisionForConditionalGeneration(config).eval()
        torch.set_default_dtype(default)
        self.dtype, self.arguments = dtype, arguments
        generator = torch.Generator().manual_seed(0)
        self._picture = torch.rand((3, 384, 384), generator=generator)

    def embeds(self, *shape: int) -> Tensor:
        """Random embeddings of the language model."""
        generator = torch.Generator().manual_seed(1)
        width = self.model.config.text_config.hidden_size
        made = 0.02 * torch.randn((*shape, width), generator=generator)
        return made.to(self.device, self.dtype)

    def frame(self, number: int) -> Tensor:
        """(1, 3, 384, 384): a square of an eighth of the picture moves on by 8 pixels."""
        picture = self._picture.clone()
        at = 8 * number % 248
        picture[:, at : at + 136, at : at + 136] = self._picture.flip(-1)[:, :136, :136]
        return (2 * picture - 1)[None].to(self.device, self.dtype)

    def milliseconds(self, call: Callable[[], object]) -> float:
        """Time of a call, its work on the device included."""
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return 1e3 * (time.perf_counter() - start)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> float:
        """GiB allocated at most since the last call; 0 without a GPU."""
        if self.device.type != "cuda":
            return 0.0
        found = torch.cuda.max_memory_allocated() / 2**30
        torch.cuda.reset_peak_memory_stats()
        return round(found, 3)

    def memory(self) -> Any:
        """Begin a ReKV memory."""
        made = make_memory(self.model.model.language_model, RekvConfig(host_bytes=32 << 30))
        made.begin(self.embeds(PREFIX))
        return made

    def stock_feed(self, cache: Any, embeds: Tensor) -> Tensor:
        """Run tokens through the stock model; logits of the last."""
        lm: Any = self.model.model.language_model
        out = lm(inputs_embeds=embeds[None], past_key_values=cache, use_cache=True)
        return self.model.lm_head(out.last_hidden_state[:, -1])

    # -- what is measured --------------------------------------------------------------------

    def frame_latency(self) -> dict[str, object]:
        """Pixels to prefilled memory, frame by frame; median of the second half."""
        count = self.arguments.latency_frames
        vision, cache = VisionEncoder(self.model), DynamicCache()
        self.stock_feed(cache, self.embeds(PREFIX))

        def stock(pixels: Tensor) -> None:
            features = vision.features(vision.tokens({"pixel_values": pixels}))
            self.stock_feed(cache, features.flatten(0, 1))

        dense = [self.milliseconds(lambda: stock(self.frame(n))) for n in range(count)]  # noqa: B023
        self.peak()
        with stc_video.accelerate(self.model).stc as handle:
            memory = self.memory()

            def ours(number: int) -> None:
                kept = handle.prune(handle.encode(self.frame(number), "bench"), "bench")
                tokens = kept.tokens[0]
                places = torch.arange(len(tokens))
                memory.append([Frame(tokens, places, len(tokens), number)])

            cached = [self.milliseconds(lambda: ours(n)) for n in range(count)]  # noqa: B023
        return self.row("frame latency", count, dense[count // 2 :], cached[count // 2 :])

    def prefill(self, count: int) -> dict[str, object]:
        """All frames into the language model."""
        full, kept = self.embeds(count, 196), self.embeds(count, 64)
        stock_times, our_times = [], []
        for _ in range(self.arguments.repeats + 1):
            cache, memory = DynamicCache(), self.memory()
            self.stock_feed(cache, self.embeds(PREFIX))
            frames = [Frame(f, torch.arange(64), 64, i) for i, f in enumerate(kept)]
            stock_times.append(
                self.milliseconds(lambda: self.stock_feed(cache, full.flatten(0, 1)))  # noqa: B023
            )

            def ours() -> None:
                for first in range(0, count, 8):
                    memory.append(frames[first : first + 8])  # noqa: B023

            our_times.append(self.milliseconds(ours))
        return self.row("prefill", count, stock_times[1:], our_times[1:])

    def first_token(self, count: int) -> dict[str, object]:
        """From the question to the logits of the first token, after so many frames."""
        prompt, kept = self.embeds(PROMPT), self.embeds(8, 64)
        self.peak()
        memory = self.memory()
        for first in range(0, count, 8):
            memory.append([Frame(f, torch.arange(64), 64, first + i) for i, f in enumerate(kept)])
        lm: Any = self.model.model.language_model

        def ours() -> Tensor:
            context = memory.context(prompt, slice(4, 20), "?")
            out = lm(inputs_embeds=prompt[None, -1:], past_key_values=context.cache,
                     position_ids=torch.tensor([[context.tokens]], device=self.device))  # fmt: skip
            return self.model.lm_head(out.last_hidden_state[:, -1])

        our_times = [self.milliseconds(ours) for _ in range(self.arguments.repeats + 1)][1:]
        our_peak = self.peak()
        memory.clear()
        stock_times: list[float] = []
        if count <= self.arguments.stock_frames:
            cache = DynamicCache()
            for _ in range(0, count, 8):
                self.stock_feed(cache, self.embeds(8, 196).flatten(0, 1))
            for _ in range(self.arguments.repeats + 1):
                stock_times.append(self.milliseconds(lambda: self.stock_feed(cache, prompt)))
                cache.crop(-PROMPT)
            stock_times = stock_times[1:]
        row = self.row("first token", count, stock_times, our_times)
        return row | {"stock_peak_gib": self.peak() or "", "peak_gib": our_peak or ""}

    def row(
        self, what: str, count: int, stock: list[float], ours: list[float]
    ) -> dict[str, object]:
        """Summarise two lists of times."""
        stock_ms = statistics.median(stock) if stock else None
        our_ms = statistics.median(ours)
        return {
            "geometry": self.arguments.geometry,
            "dtype": self.arguments.dtype,
            "what": what,
            "frames": count,
            "stock_ms": "" if stock_ms is None else round(stock_ms, 2),
            "ours_ms": round(our_ms, 2),
            "ratio": "" if stock_ms is None else round(our_ms / stock_ms, 4),
            "stock_peak_gib": "",
            "peak_gib": "",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--geometry", choices=list(GEOMETRIES), default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--latency-frames", type=int, default=40)
    parser.add_argument("--prefill", nargs="+", type=int, default=[16, 32, 64])
    parser.add_argument("--first-token", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--stock-frames", type=int, default=256, help="more are too many for it")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []

    def done(row: dict[str, object]) -> None:
        device = torch.device(arguments.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        print(row, flush=True)
        rows.append(row | environment() | ({"device": name} if device.type == "cuda" else {}))
        if arguments.out is not None:
            write_rows(arguments.out, rows)  # whatever happens next is kept

    with torch.inference_mode():
        bench = Bench(arguments)
        done(bench.frame_latency())
        for count in arguments.prefill:
            done(bench.prefill(count))
        for count in arguments.first_token:
            done(bench.first_token(count))


if __name__ == "__main__":
    main()
