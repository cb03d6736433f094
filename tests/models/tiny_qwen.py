# SPDX-License-Identifier: Apache-2.0
"""Small towers of the Qwen-VL family, of the real classes, and rows of pixels for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tiny_towers import randomise
from torch import Tensor, nn
from transformers.models.qwen2_5_vl import configuration_qwen2_5_vl, modeling_qwen2_5_vl
from transformers.models.qwen2_vl import configuration_qwen2_vl, modeling_qwen2_vl
from transformers.models.qwen3_vl import configuration_qwen3_vl, modeling_qwen3_vl

GRID = (6, 10)  # for Qwen2.5-VL windows of 2 x 2 merge blocks, some of them cut off
ROWS = GRID[0] * GRID[1]


def _qwen2() -> nn.Module:
    config = configuration_qwen2_vl.Qwen2VLVisionConfig(
        depth=4, embed_dim=32, hidden_size=24, num_heads=4, mlp_ratio=2
    )
    return modeling_qwen2_vl.Qwen2VisionTransformerPretrainedModel._from_config(config)


def _qwen2_5() -> nn.Module:
    config = configuration_qwen2_5_vl.Qwen2_5_VLVisionConfig(
        depth=4, hidden_size=32, intermediate_size=64, out_hidden_size=24, num_heads=4,
        window_size=56, fullatt_block_indexes=[2],
    )  # fmt: skip
    return modeling_qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel._from_config(config)


def _qwen3() -> nn.Module:
    config = configuration_qwen3_vl.Qwen3VLVisionConfig(
        depth=4, hidden_size=32, intermediate_size=64, out_hidden_size=24, num_heads=4,
        num_position_embeddings=16, deepstack_visual_indexes=[1],
    )  # fmt: skip
    return modeling_qwen3_vl.Qwen3VLVisionModel._from_config(config)


TOWERS: dict[str, Callable[[], nn.Module]] = {
    "qwen2-vl": _qwen2,
    "qwen2.5-vl": _qwen2_5,
    "qwen3-vl": _qwen3,
}


def make_tower(name: str) -> nn.Module:
    return randomise(TOWERS[name]())


def width(tower: nn.Module) -> int:
    """Pixels of a row: 3 channels of 2 pictures."""
    return 3 * 2 * tower.patch_embed.patch_size**2


def video(
    tower: nn.Module, frames: int, changed: int = 6, seed: int = 0, rows: int = ROWS
) -> list[Tensor]:
    """Temporal patches (rows, pixels), in each of which some rows differ from the last."""
    generator = torch.Generator().manual_seed(seed)
    size = (rows, width(tower))
    made = [torch.randn(size, generator=generator)]
    for _ in range(frames - 1):
        frame = made[-1].clone()
        places = torch.randperm(rows, generator=generator)[:changed]
        frame[places] = torch.randn((changed, size[1]), generator=generator)
        # Every other row moves a little, so that no two are equally similar.
        frame += 1e-3 * torch.randn(size, generator=generator)
        made.append(frame)
    return made


def grid_of(*videos: tuple[int, int, int]) -> Tensor:
    return torch.tensor(videos)


def encode(tower: nn.Module, rows: Tensor, *grids: tuple[int, int, int]) -> list[Tensor]:
    """Everything that leaves the tower: its tokens, and those of Qwen3-VL's other mergers."""
    with torch.no_grad():
        out = tower(rows, grid_thw=grid_of(*(grids or ((len(rows) // ROWS, *GRID),))))
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, tuple):
        return [out[0], *out[1]]
    return [out.pooler_output, *(getattr(out, "deepstack_features", None) or ())]


def block_inputs(tower: nn.Module, rows: Tensor) -> list[dict[str, Tensor]]:
    """What the stock tower calls each of its blocks with, for one temporal patch."""
    seen: list[dict[str, Tensor]] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.append({"hidden_states": args[0].clone(), **kwargs})

    hooks = [b.register_forward_pre_hook(keep, with_kwargs=True) for b in tower.blocks]
    encode(tower, rows)
    for hook in hooks:
        hook.remove()
    return seen
