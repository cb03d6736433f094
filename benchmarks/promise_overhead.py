# SPDX-License-Identifier: Apache-2.0
"""What keeping the promise adds to a cached frame that is not audited.

    python benchmarks/promise_overhead.py

A DINOv2 ViT-S/14 with random weights at 224 px sees a still picture with noise; the shortest
processor time of many frames of one kind is taken, since what else the machine does only adds to
it. Prints milliseconds of a cached frame without and with audits, of an audit and of a dense frame.
"""

from __future__ import annotations

import time

import torch
from transformers import Dinov2Config, Dinov2Model

from stc_video import CacheConfig, attach_cacher

FRAMES = 80


def shortest(audits: bool) -> dict[str, float]:
    """Shortest milliseconds of a frame, by kind."""
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224, patch_size=14)
    tower = Dinov2Model(config).eval()
    cacher = attach_cacher(tower, CacheConfig(audits=audits))
    ground = torch.rand(1, 3, 224, 224)
    best: dict[str, float] = {}
    for _ in range(FRAMES):
        picture = ground + 0.01 * torch.randn_like(ground)
        start = time.thread_time()
        with torch.inference_mode():
            tower(pixel_values=picture)
        seconds = time.thread_time() - start
        [record] = cacher.last_frames
        kind = "audited" if record.audited else f"{record.kind}, {int(record.encoded.sum())} tokens"
        best[kind] = min(best.get(kind, seconds), seconds)
    return {kind: round(1e3 * seconds, 2) for kind, seconds in best.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for audits in (False, True, False, True):
        print("with audits" if audits else "without audits", shortest(audits), flush=True)
