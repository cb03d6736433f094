# SPDX-License-Identifier: Apache-2.0
"""The towers of Qwen2.5-VL and Qwen3-VL as vLLM has them: frames of any size, and mergers.

Queries and keys are rotated by half as many numbers as in transformers, which repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stc_video.cacher.varlen_cacher import Merged
from stc_video.integrations.vllm.block import EngineBlock
from stc_video.integrations.vllm.encoder import Item, Pass, StreamEncoder
from stc_video.integrations.vllm.settings import Settings
from stc_video.towers.layouts import QWEN_VL
from stc_video.towers.patching import InstancePatch, as_function
from stc_video.towers.positions import FrameGeometry, Tables
from stc_video.towers.varlen import MergerSite, VarlenTower


class QwenEncoder(StreamEncoder):
    """Encodes on a tower of Qwen-VL, whose mergers make tokens of four rows."""

    def __init__(self, visual: nn.Module, settings: Settings, log: Callable[[str], None]) -> None:
        super().__init__(visual, settings, log)
        self._mergers = [
            InstancePatch.install(
                site.module, as_function(self._merger_forward(number)), owner=self
            )
            for number, site in enumerate(self._tower.mergers)
        ]

    def detach(self) -> None:
        """Take everything off the tower, which is the stock one then."""
        super().detach()
        for patch in self._mergers:
            patch.remove()

    @staticmethod
    def _take_apart(visual: nn.Module) -> VarlenTower:
        tower = cast(Any, visual)
        full = getattr(tower, "fullatt_block_indexes", range(len(tower.blocks)))
        geometry = FrameGeometry()
        blocks = tuple(
            EngineBlock.taken_apart(layer, QWEN_VL, geometry, number not in full)
            for number, layer in enumerate(tower.blocks)
        )
        window = 0
        if any(block.is_windowed for block in blocks):
            window = tower.window_size // tower.spatial_merge_size // tower.patch_size
        mergers = tuple(_mergers(tower, len(blocks)))
        merge: int = tower.spatial_merge_size
        return VarlenTower(visual, (visual,), blocks, mergers, merge, window, geometry)

    def _forward(
        self, visual: nn.Module, x: Tensor, grid_thw: Any, *args: Any, **kwargs: Any
    ) -> Tensor:
        if args or kwargs or not any(name.key for name in self._names):
            stocked: Tensor = self._root.stock(x, grid_thw, *args, **kwargs)
            return stocked
        grids = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
        pixels = x.split([time * height * width for time, height, width in grids])
        named = zip(self._names, map(tuple, grids), pixels, strict=True)
        return self._tokens([Item(*of) for of in named])

    def _stock(self, items: Sequence[Item]) -> Tensor:
        pixels = torch.cat([item.pixels for item in items])
        tokens: Tensor = self._root.stock(pixels, [list(item.grid) for item in items])
        return tokens

    def _frames(self, run: Pass, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        """Return rows (M, 1, C) as frames."""
        time, height, width = run.grid
        size, tower = height * width, self._tower
        halves = (kwargs[f"rotary_pos_emb_{name}"][:size] for name in ("cos", "sin"))
        cos, sin = (torch.cat([half, half], dim=-1) for half in halves)
        tower.geometry.enter(Tables(cos, sin), size, tower.windows(height, width))
        return x.view(len(run.streams) * time, size, x.shape[-1])

    def _merger_forward(self, number: int) -> Callable[..., Tensor]:
        """Forward of a merger: makes those tokens anew whose rows are not what they were."""

        def forward(merger: nn.Module, rows: Tensor) -> Tensor:
            patch, run = self._mergers[number], self._pass
            if run is None:
                stocked: Tensor = patch.stock(rows)
                return stocked
            time, height, width = run.grid
            frames = rows.view(len(run.streams), time, height * width, rows.shape[-1])
            tokens = []
            for stream, own in zip(run.streams, frames, strict=True):
                for frame in own:
                    merged = stream.merged.get(number)
                    if merged is None:
                        stream.merged[number] = merged = Merged(frame.clone(), patch.stock(frame))
                    else:
                        merged.update(patch, frame.clone())
                    tokens.append(merged.tokens)
            return torch.cat(tokens)

        return forward


def _mergers(tower: Any, layers: int) -> Iterator[MergerSite]:
    pairs = zip(
        getattr(tower, "deepstack_merger_list", ()),
        getattr(tower, "deepstack_visual_indexes", ()),
        strict=True,
    )
    yield from (MergerSite(module, layer) for module, layer in pairs)
    yield MergerSite(tower.merger, layers - 1)
