# SPDX-License-Identifier: Apache-2.0
"""SigLIP as LLaVA-OneVision has it in vLLM: frames of one size, a batch of them a call.

A frame of a video is one picture of the tower's size. A picture is several views: the whole, and
the crops that it is cut into, each compared with the same crop of the stream's last picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from stc_video.integrations.vllm.block import EngineBlock
from stc_video.integrations.vllm.encoder import Item, Pass, StreamEncoder
from stc_video.integrations.vllm.names import StreamName
from stc_video.towers.layouts import BlockLayout
from stc_video.towers.positions import FrameGeometry
from stc_video.towers.varlen import VarlenTower

_LAYOUT = BlockLayout("layer_norm1", "layer_norm2", "self_attn", ("qkv_proj",), output="out_proj")


class SiglipEncoder(StreamEncoder):
    """Encodes on a SigLIP. An item of a call is one frame, or one view of a picture."""

    #: what the tower is called with besides the pixels
    _options: Mapping[str, Any] = {}

    @staticmethod
    def _take_apart(visual: nn.Module) -> VarlenTower:
        tower, geometry = cast(Any, visual).vision_model, FrameGeometry()
        if hasattr(tower.embeddings, "class_embedding"):
            raise AttributeError(f"{type(visual).__name__} has a class token, which SigLIP has not")
        blocks = tuple(
            EngineBlock.taken_apart(layer, _LAYOUT, geometry) for layer in tower.encoder.layers
        )
        return VarlenTower(visual, (visual,), blocks, (), 1, 0, geometry)

    def _in_call(
        self, names: Sequence[StreamName], fields: Mapping[str, Any]
    ) -> Sequence[StreamName]:
        videos = fields.get("pixel_values_videos")
        if videos is not None:
            return [
                name for name, frames in zip(names, videos, strict=True) for _ in range(len(frames))
            ]
        pictures = fields.get("pixel_values", ())
        return [
            name.of_view(number)
            for name, views in zip(names, pictures, strict=bool(len(pictures)))
            for number in range(len(views))
        ]

    def _forward(self, visual: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        wants_more = args or kwargs.get("select_layers")  # outputs of other blocks than the last
        if wants_more or not any(name.key for name in self._names):
            stocked: Tensor = self._root.stock(x, *args, **kwargs)
            return stocked
        self._options = kwargs
        embeddings = self._visual.vision_model.embeddings
        grid = tuple(size // embeddings.patch_size for size in x.shape[2:])
        named = zip(self._names, x.split(1), strict=True)
        return self._tokens([Item(name, (1, *grid), pixels) for name, pixels in named])

    def _stock(self, items: Sequence[Item]) -> Tensor:
        pixels = torch.cat([item.pixels for item in items])
        tokens: Tensor = self._root.stock(pixels, **self._options)
        return tokens

    def _frames(self, run: Pass, x: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
        return x

    def _returned(self, output: Tensor) -> Any:
        return output, None
