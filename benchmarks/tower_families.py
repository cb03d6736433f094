# SPDX-License-Identifier: Apache-2.0
"""What a cached frame costs in the towers of many families, at their real geometry.

Weights are random and layers few. In every frame a band of the picture changes; a cached frame and
a dense one of the stock tower's twin take turns, in processor time. A cached frame is to cost at
most 1.2 times the fraction of its rows that changed, plus 0.05 of a dense one.

    python benchmarks/tower_families.py --out benchmarks/results/tower_families.csv
"""

from __future__ import annotations

import argparse
import copy
import importlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from environment import environment, write_rows
from torch import Tensor, nn

from stc_video import CacheConfig, attach_cacher

#: family -> class, settings, side of the picture and of a patch, in pixels
_LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16}
_GIGANTIC = {"hidden_size": 1664, "intermediate_size": 8192, "num_attention_heads": 16}
_SO400M = _LARGE | {"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
_OMNI = {"hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048}
TOWERS: dict[str, tuple[str, str, dict[str, Any], int, int]] = {
    "DINOv3 ViT-L": ("dinov3_vit", "DINOv3ViTModel", _LARGE | {"num_register_tokens": 4}, 448, 16),
    "InternVL": ("internvl", "InternVLVisionModel", {"image_size": [448, 448]}, 448, 14),
    "ViT-L": ("vit", "ViTModel", _LARGE | {"image_size": 384}, 384, 16),
    "MLCD": ("mlcd", "MLCDVisionModel", _GIGANTIC | {"image_size": 336}, 336, 14),
    "Gemma 4": ("gemma4", "Gemma4VisionModel", {}, 384, 16),
    "Molmo2": ("molmo2", "Molmo2VisionModel", {}, 378, 14),
    "Pixtral": ("pixtral", "PixtralVisionModel", {}, 448, 16),
    "Qwen3.5": ("qwen3_5", "Qwen3_5VisionModel", {}, 448, 16),
    "Qwen2.5-Omni": ("qwen2_5_omni", "Qwen2_5OmniVisionEncoder", _OMNI, 448, 14),
    "VideoLLaMA 3": ("video_llama_3", "VideoLlama3VisionModel", _SO400M, 448, 14),
}  # fmt: skip


def build(name: str, layers: int) -> nn.Module:
    """Make a tower with few layers and random weights."""
    module, class_name, settings, _, _ = TOWERS[name]
    home = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    tower_class = getattr(home, class_name)
    depth = {"num_hidden_layers": layers, "depth": layers}
    known = tower_class.config_class().to_dict()
    config = tower_class.config_class(**settings, **{k: v for k, v in depth.items() if k in known})
    tower: nn.Module = tower_class._from_config(config).eval()
    return tower


def arguments(name: str, picture: Tensor) -> dict[str, Any]:
    """Arguments of a tower for a picture (1, 3, S, S), in the form of its processor."""
    _, _, _, side, patch = TOWERS[name]
    places, parts = side // patch, ("Gemma", "Molmo", "Qwen", "VideoLLaMA")
    if not name.startswith(parts):
        return {"pixel_values": picture}
    rows = nn.functional.unfold(picture, patch, stride=patch).transpose(1, 2).contiguous()
    if name.startswith("Molmo"):
        return {"pixel_values": rows}
    if name.startswith("Gemma"):
        at = torch.arange(places)
        return {"pixel_values": rows, "pixel_position_ids": torch.cartesian_prod(at, at)[None]}
    grid = torch.tensor([[1, places, places]])
    if name.startswith("Video"):
        return {"pixel_values": rows[0], "grid_thw": grid, "merge_sizes": torch.tensor([1])}
    return {"hidden_states": rows[0].repeat(1, 2), "grid_thw": grid}


def frames(name: str, fraction: float) -> Iterator[Tensor]:
    """Pictures of which a band is another one each time."""
    _, _, _, side, patch = TOWERS[name]
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand((1, 3, side, side), generator=generator)
    height = round(fraction * side / patch / 2) * 2 * patch
    while True:
        picture = picture.clone()
        picture[:, :, :height] = torch.rand((1, 3, height, side), generator=generator)
        yield picture


def seconds(call: Callable[[], object]) -> float:
    """Processor time of a call: others on the machine do not count."""
    start = time.process_time()
    with torch.inference_mode():
        call()
    return time.process_time() - start


def measure(name: str, fraction: float, layers: int, repeats: int) -> dict[str, Any]:
    """Time cached frames of a tower against dense ones of its twin, in turns."""
    torch.manual_seed(0)
    tower = build(name, layers)
    stock = copy.deepcopy(tower)
    config = CacheConfig(
        threshold=0.999, refresh=0.0, propagate=0.0, redo_from=None, tail_layers=0,
        buckets=tuple(number / 32 for number in range(1, 33)),
    )  # fmt: skip
    cacher = attach_cacher(tower, config)
    ratios, dense, record = [], [], None
    for number, picture in zip(range(repeats + 3), frames(name, fraction), strict=False):
        given = arguments(name, picture)
        ours = seconds(lambda: tower(**given))  # noqa: B023
        theirs = seconds(lambda: stock(**given))  # noqa: B023
        if number >= 3:
            record = cacher.last_frames[0]
            ratios.append(ours / theirs)
            dense.append(theirs)
    cacher.detach()  # else the tower stays in memory until the next one is as large
    assert record is not None
    changed = record.changed / (record.tokens - record.prefix_tokens)
    ratio = sorted(ratios)[len(ratios) // 2]
    return {
        "family": name,
        "layers": layers,
        "tokens": record.tokens,
        "kind": record.kind,
        "changed": round(changed, 4),
        "dense_ms": round(1e3 * sorted(dense)[len(dense) // 2], 1),
        "ratio": round(ratio, 4),
        "allowed": round(1.2 * changed + 0.05, 4),
        "holds": ratio <= 1.2 * changed + 0.05,
    }


def main() -> None:
    """Measure all families with an eighth and a quarter of the picture changed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--families", nargs="+", choices=list(TOWERS), default=list(TOWERS))
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows, where = [], environment()
    for name in given.families:
        for fraction in (0.125, 0.25):
            row = measure(name, fraction, given.layers, given.repeats)
            print(row, flush=True)
            rows.append(row | where)
    if given.out is not None:
        write_rows(given.out, rows)


if __name__ == "__main__":
    main()
