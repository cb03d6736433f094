# SPDX-License-Identifier: Apache-2.0
"""Pruners on a CPU against each method written straightforwardly in PyTorch, and how they scale.

Ours and the straightforward version are timed in turn; the ratio is the median of the ratios of
neighbouring runs, so that whatever else the machine does hits both::

    python benchmarks/cpu_pruners.py        # writes benchmarks/results/cpu_pruners.csv
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from environment import environment, write_rows
from torch import Tensor

import stc_kernels
from stc_video import make_pruner
from stc_video.pruners import Attention

RESULTS = Path(__file__).parent / "results" / "cpu_pruners.csv"
FRAMES, GRID, WIDTH, KEPT = 16, (14, 14), 3584, 64
HEADS, HEAD_WIDTH = 16, 72
GRIDS = [(14, 14), (28, 28), (55, 55), (78, 78), (110, 110), (150, 160)]
#: first of the grids that the power law is fitted to
FITTED = 2


def plain_streaming_assistant(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Temporal drop, then MSSAVT against living neighbours; kept tokens in one row."""
    unit = F.normalize(features, dim=-1).unflatten(1, grid)
    alive = torch.ones(unit.shape[:3], dtype=torch.bool)
    alive[1:] = (unit[1:] * unit[:-1]).sum(-1) <= 0.5
    across = (unit[:, :, 1:] * unit[:, :, :-1]).sum(-1)
    down = (unit[:, 1:] * unit[:, :-1]).sum(-1)
    nothing = -torch.inf
    sides = [
        F.pad(across.masked_fill(~alive[:, :, 1:], nothing), (0, 1), value=nothing),
        F.pad(across.masked_fill(~alive[:, :, :-1], nothing), (1, 0), value=nothing),
        F.pad(down.masked_fill(~alive[:, 1:], nothing), (0, 0, 0, 1), value=nothing),
        F.pad(down.masked_fill(~alive[:, :-1], nothing), (0, 0, 1, 0), value=nothing),
    ]
    redundancy = torch.stack(sides).amax(0)
    odd = (torch.arange(grid[0])[:, None] + torch.arange(grid[1])) % 2 == 1
    keep = alive & ~(odd & (redundancy > 0.5))
    return features[keep.flatten(1)]


def plain_tome(tokens: Tensor, count: int) -> Tensor:
    """Rounds of bipartite matching and size-weighted means; order restored at the end."""
    sizes = torch.ones(tokens.shape[:2])
    place = torch.arange(tokens.shape[1]).expand(tokens.shape[:2])
    while (left := tokens.shape[1]) > count:
        r = min(left - count, left // 2)
        unit = F.normalize(tokens, dim=-1)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(-1)
        order = best.argsort(dim=-1, descending=True)
        gone, stay = order[:, :r], order[:, r:]
        into = partner.gather(1, gone)

        def merge(
            x: Tensor, gone: Tensor = gone, stay: Tensor = stay, into: Tensor = into
        ) -> Tensor:
            even, odd = x[:, ::2], x[:, 1::2]

            def wide(i: Tensor) -> Tensor:
                return i[..., None].expand(-1, -1, x.shape[-1])

            odd = odd.scatter_add(1, wide(into), even.gather(1, wide(gone)))
            return torch.cat([even.gather(1, wide(stay)), odd], dim=1)

        total = merge(sizes[..., None])
        tokens = merge(tokens * sizes[..., None]) / total
        place = torch.cat([place[:, ::2].gather(1, stay), place[:, 1::2]], dim=1)
        sizes = total[..., 0]
    order = place.argsort(dim=1)
    return tokens.gather(1, order[..., None].expand_as(tokens))


def plain_visionzip(features: Tensor, query: Tensor, key: Tensor, count: int) -> Tensor:
    """With the whole attention matrix, as a tower gives it when asked for its attentions."""
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * HEAD_WIDTH**-0.5
    received = logits.softmax(-1).mean((1, 2))
    merged = int(10 / 64 * count)
    dominant = received.topk(count - merged).indices.sort(dim=1).values
    rest = torch.ones_like(received, dtype=torch.bool).scatter(1, dominant, False)
    frames, _, width = features.shape
    metric = F.normalize(key.mean(2), dim=-1)
    others, other_metric = (
        features[rest].view(frames, -1, width),
        metric[rest].view(frames, -1, metric.shape[-1]),
    )
    step = max(1, others.shape[1] // merged)
    targets = torch.arange(0, others.shape[1], step)[:merged]
    mask = torch.ones(others.shape[1], dtype=torch.bool)
    mask[targets] = False
    nearest = (other_metric[:, mask] @ other_metric[:, targets].transpose(1, 2)).argmax(-1)
    one_hot = F.one_hot(nearest, merged).float()
    mean = one_hot.transpose(1, 2) @ others[:, mask] / one_hot.sum(1).clamp_min(1)[..., None]
    kept = features.gather(1, dominant[..., None].expand(-1, -1, width))
    return torch.cat([kept, others[:, targets] + mean], dim=1)


def plain_evs(features: Tensor, count: int) -> Tensor:
    change = 1 - F.cosine_similarity(features[1:], features[:-1], dim=-1)
    order = torch.cat([torch.full_like(change[:1], 2.0), change]).topk(count).indices
    order = order.sort(dim=1).values
    return features.gather(1, order[..., None].expand(-1, -1, features.shape[-1]))


def plain_dtd(features: Tensor) -> Tensor:
    keep = torch.ones(features.shape[:2], dtype=torch.bool)
    keep[1:] = F.cosine_similarity(features[1:], features[:-1], dim=-1) <= 0.5
    return features[keep]


def video(frames: int, tokens: int, width: int) -> Tensor:
    """Tokens of which nearly half change between frames, and neighbours resemble each other."""
    base = torch.randn(1, 1, width) + torch.randn(1, tokens, width)
    change = torch.where(torch.rand(frames, tokens, 1) < 0.25, 4.0, 0.3)
    return base + change * torch.randn(frames, tokens, width)


def alternating(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, list[float]]:
    """Times in turn, so that both meet the same state of the machine."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return times


def cases() -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Per method: ours and the straightforward one."""
    features = video(FRAMES, GRID[0] * GRID[1], WIDTH)
    query, key = (torch.randn(FRAMES, features.shape[1], HEADS, HEAD_WIDTH) for _ in range(2))
    attention = Attention(query, key)

    def fresh(name: str, **settings: Any) -> Callable[[], Any]:
        # A pruner of its own per call, since the plain versions remember nothing either.
        return lambda: make_pruner(name, **settings)(features, GRID, attention=attention)

    return {
        "streaming_assistant": (
            lambda: make_pruner("streaming_assistant")(features, GRID).packed(),
            lambda: plain_streaming_assistant(features, GRID),
        ),
        "tome": (fresh("tome", tokens_per_frame=KEPT), lambda: plain_tome(features, KEPT)),
        "visionzip": (
            fresh("visionzip", tokens_per_frame=KEPT),
            lambda: plain_visionzip(features, query, key, KEPT),
        ),
        "evs": (fresh("evs", tokens_per_frame=KEPT), lambda: plain_evs(features, KEPT)),
        "dtd": (lambda: make_pruner("dtd")(features).packed(), lambda: plain_dtd(features)),
    }


#: of one frame; visionzip gets the attention of a class token, which is one row
SCALED: dict[str, dict[str, Any]] = {
    "streaming_assistant": {},
    "evs": {"retention_ratio": 0.25},
    "dtd": {},
    "vidcom2": {"retention_ratio": 0.25},
    "stc": {"retention_ratio": 0.25},
    "tome": {"retention_ratio": 0.25},
    "visionzip": {"tokens_per_frame": KEPT},
}


def scaling(seconds: float) -> list[dict[str, object]]:
    """Time of one frame of up to 24,000 tokens, and the exponent of a power law through it.

    The fit begins where a frame no longer fits into the caches: below, a token costs less.
    """
    rows: list[dict[str, object]] = []
    for name, settings in SCALED.items():
        sizes, medians = [], []
        for grid in GRIDS:
            tokens = grid[0] * grid[1]
            frames = video(2, tokens, 1024)
            heads = torch.randn(2, 1, tokens + 1, HEADS, HEAD_WIDTH)
            attention = Attention(heads[0][:, :1], heads[1], prefix=1)
            pruner = make_pruner(name, **settings)

            def prune(
                frame: Tensor, p: Any = pruner, g: Any = grid, a: Attention = attention
            ) -> None:
                p(frame, g, attention=a)

            prune(frames[:1])
            run = {name: lambda prune=prune, frame=frames[1:]: prune(frame)}
            medians.append(statistics.median(alternating(run, seconds)[name]))
            sizes.append(tokens)
        exponent = float(np.polyfit(np.log(sizes[FITTED:]), np.log(medians[FITTED:]), 1)[0])
        print(f"{name:20} time ~ tokens^{exponent:.2f} from {sizes[FITTED]} to {sizes[-1]} tokens")
        for tokens, median in zip(sizes, medians, strict=True):
            rows.append(
                {
                    "pruner": name,
                    "shape": f"1x{tokens}x1024",
                    "median_us": round(1e6 * median, 1),
                    "p99_us": "",
                    "plain_median_us": "",
                    "ratio_vs_plain": "",
                    "exponent": round(exponent, 3),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="per case")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    rows: list[dict[str, object]] = []
    with torch.inference_mode(), stc_kernels.use_backend("native"):
        for name, (ours, plain) in cases().items():
            times = alternating({"ours": ours, "plain": plain}, arguments.seconds)
            middle = {key: statistics.median(values) for key, values in times.items()}
            pairs = zip(times["plain"], times["ours"], strict=True)
            ratio = statistics.median(plain / ours for plain, ours in pairs)
            rows.append(
                {
                    "pruner": name,
                    "shape": f"{FRAMES}x{GRID[0] * GRID[1]}x{WIDTH}",
                    "median_us": round(1e6 * middle["ours"], 1),
                    "p99_us": round(1e6 * float(np.percentile(times["ours"], 99)), 1),
                    "plain_median_us": round(1e6 * middle["plain"], 1),
                    "ratio_vs_plain": round(ratio, 2),
                    "exponent": "",
                }
            )
            print(rows[-1])
        rows += scaling(arguments.seconds / 5)
    write_rows(arguments.out, [{**row, **environment()} for row in rows])


if __name__ == "__main__":
    main()
