# SPDX-License-Identifier: Apache-2.0
"""What the stored form of frames loses: keys, values, and what attention makes of them.

Keys and values are random, as 64 frames of 64 tokens of a model with 2 key heads of 64 channels
(Qwen2-0.5B's geometry). With ``outliers``, four key channels have 20 times the size of the others
and an offset, as the biases of trained Qwen2 models give them; queries are smaller there, so that
the scores do not depend on them alone. Errors are relative, in the mean square: of keys, of
values, and of the output of attention over all frames, for 256 queries.

    python benchmarks/storage_error.py --out benchmarks/results/storage_error.csv
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from environment import environment, write_rows
from torch import Tensor

from stc_video.memory.codecs import make_codec
from stc_video.memory.config import STORAGES

FRAMES, TOKENS, HEADS, WIDTH, QUERIES = 64, 64, 2, 64, 256


def make_frames(outliers: bool) -> tuple[Tensor, Tensor]:
    """Keys and values (F, 2, H, n, d) and queries (H, q, d)."""
    generator = torch.Generator().manual_seed(0)
    kv = torch.randn((FRAMES, 2, HEADS, TOKENS, WIDTH), generator=generator)
    queries = 2 * torch.randn((HEADS, QUERIES, WIDTH), generator=generator)
    if outliers:
        kv[:, 0, :, :, :4] = 20 * kv[:, 0, :, :, :4] + 40
        queries[..., :4] /= 20
    return kv, queries


def attend(queries: Tensor, kv: Tensor) -> Tensor:
    keys, values = (kv[:, part].transpose(0, 1).flatten(1, 2) for part in (0, 1))
    return torch.nn.functional.scaled_dot_product_attention(queries, keys, values)


def relative(found: Tensor, exact: Tensor) -> float:
    return round(float((found - exact).norm() / exact.norm()), 5)


def measure(storage: str, outliers: bool) -> dict[str, object]:
    """Write all frames, read them again, and compare."""
    kv, queries = make_frames(outliers)
    stored = kv.to(torch.bfloat16)
    codec = make_codec(storage, HEADS, WIDTH, torch.bfloat16)
    records = codec.encode(stored)
    back = torch.stack([codec.decode(row, TOKENS) for row in records]).float()
    return {
        "storage": storage,
        "outliers": outliers,
        "bits_per_value": 8 * records.nbytes / kv.numel(),
        "key_error": relative(back[:, 0], stored[:, 0].float()),
        "value_error": relative(back[:, 1], stored[:, 1].float()),
        "attention_error": relative(attend(queries, back), attend(queries, stored.float())),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = [measure(storage, outliers) for outliers in (False, True) for storage in STORAGES]
    for row in rows:
        print(row)
    if arguments.out is not None:
        write_rows(arguments.out, [row | environment() for row in rows])


if __name__ == "__main__":
    main()
