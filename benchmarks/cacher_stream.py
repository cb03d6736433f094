# SPDX-License-Identifier: Apache-2.0
"""A very long stream through a cached tower: bytes of state, process memory, likeness to dense.

The tower is tiny, with random weights. The scene changes a patch or two at a time, all over it
within some dozens of frames, with a little noise everywhere, and a cut now and then; so that no
part of the stream is harder than another. Fails if the state's bytes change, if the process grows,
or if the likeness to a dense encoding drifts.

    python benchmarks/cacher_stream.py --frames 100000 --out benchmarks/results/cacher_stream.csv
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import psutil
import torch
from environment import environment, write_rows
from torch import Tensor, nn
from transformers import SiglipVisionConfig, SiglipVisionModel

import stc_video

SIDE, PATCH = 4, 8
#: growth of the process that counts as noise of the allocator, in bytes
MEMORY_NOISE = 16 << 20
#: difference of mean likeness between the first and the last part that counts as noise
DRIFT = 0.005


def make_tower() -> nn.Module:
    """A tiny SigLIP with weights of order one, so that what is stale shows."""
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
        vision_use_head=False,
    )
    tower = SiglipVisionModel(config).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    return tower


def next_picture(picture: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Change the scene by a frame."""
    if number % 97 == 0:
        return torch.rand(picture.shape, generator=generator)
    changed = picture + 0.01 * torch.randn(picture.shape, generator=generator)
    for at in torch.randint(0, SIDE * SIDE, (1 + number % 2,), generator=generator).tolist():
        rows, columns = (slice(n * PATCH, (n + 1) * PATCH) for n in divmod(at, SIDE))
        changed[..., rows, columns] = torch.rand((1, 3, PATCH, PATCH), generator=generator)
    return changed.clamp(0.0, 1.0)


def run(policy: str, frames: int, samples: int = 200) -> dict[str, object]:
    """Send all frames; raise if anything grows or drifts.

    Parameters
    ----------
    policy
        Name of the cacher's policy.
    frames
        How many, at least 500.
    samples
        At how many of them to look.

    Returns
    -------
    dict
        One row of the table.
    """
    tower, process = make_tower(), psutil.Process()
    cacher = stc_video.attach_cacher(tower, policy)
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand((1, 3, SIDE * PATCH, SIDE * PATCH), generator=generator)
    every = max(1, frames // samples)
    sizes, likeness, resident = set(), [], []
    with torch.inference_mode():
        for number in range(frames):
            picture = next_picture(picture, number, generator)
            output = tower(picture).last_hidden_state
            sizes.add(cacher.stats().state_bytes)
            if number % every == every - 1:
                with cacher.paused():
                    dense = tower(picture).last_hidden_state
                likeness.append(float(torch.cosine_similarity(output, dense, dim=-1).mean()))
                resident.append(process.memory_info().rss)
    part = len(likeness) // 3
    first, last = (statistics.fmean(values) for values in (likeness[:part], likeness[-part:]))
    # The allocator has settled after the first third.
    growth = max(resident[-part:]) - max(resident[:part])
    row: dict[str, object] = {
        "policy": policy,
        "frames": frames,
        "cost": round(cacher.stats().cost, 4),
        "state_bytes": max(sizes),
        "likeness_first_third": round(first, 5),
        "likeness_last_third": round(last, 5),
        "worst_likeness": round(min(likeness), 5),
        "resident_growth_bytes": growth,
    }
    if len(sizes) != 1:
        raise RuntimeError(f"the state had {len(sizes)} sizes, from {min(sizes)} to {max(sizes)}")
    if growth > MEMORY_NOISE:
        raise RuntimeError(f"the process grew by {growth} bytes")
    if abs(first - last) > DRIFT + 4.0 * _standard_error(likeness, part):
        raise RuntimeError(f"the likeness to dense went from {first:.5f} to {last:.5f}")
    return row


def _standard_error(values: list[float], count: int) -> float:
    """Of the difference of two means over ``count`` of the values."""
    return statistics.stdev(values) * (2.0 / count) ** 0.5


def main() -> None:
    """Measure the policies asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["motion", "stc"])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for policy in arguments.policies:
        row = run(policy, arguments.frames)
        print(row, flush=True)
        rows.append(row | environment())
    if arguments.out is not None:
        write_rows(arguments.out, rows)


if __name__ == "__main__":
    main()
