# SPDX-License-Identifier: Apache-2.0
"""Towers of timm, by themselves and through transformers' wrapper (Perception Encoder)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import test_every_tower as towers
from torch import Tensor, nn
from zoo import SIZE, pixels, strong

timm = pytest.importorskip("timm")

_SMALL = {"img_size": SIZE, "patch_size": 14, "depth": 3, "embed_dim": 48, "num_heads": 4}


@dataclass(frozen=True)
class TimmEntry:
    """A model of timm, made small; in ``TimmWrapperModel`` or by itself."""

    name: str
    is_wrapped: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    several: str = ""

    def __str__(self) -> str:
        return f"{self.name}{'-wrapped' * self.is_wrapped}"

    def build(self) -> nn.Module:
        settings = _SMALL | self.settings
        if not self.is_wrapped:
            return strong(timm.create_model(self.name, num_classes=0, **settings))
        from transformers import TimmWrapperConfig, TimmWrapperModel

        config = TimmWrapperConfig(architecture=self.name, model_args=settings, do_pooling=False)
        return strong(TimmWrapperModel(config))

    def arguments(self, frames: Tensor) -> dict[str, Any]:
        return pixels(frames) if self.is_wrapped else {"x": frames}


ENTRIES = (
    TimmEntry("vit_pe_lang_large_patch14_448", is_wrapped=True),
    TimmEntry("vit_pe_core_base_patch16_224", is_wrapped=True),
    TimmEntry("vit_small_patch14_dinov2"),
    TimmEntry("vit_base_patch16_224"),
)


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_a_tower_of_timm_is_right(entry: TimmEntry) -> None:
    for policy in ("motion", "stc"):
        towers.test_a_supported_tower_is_right(entry, policy)
    towers.test_a_frame_that_changed_in_part_is_what_stock_blocks_give(entry)
    towers.test_several_pictures_in_a_call(entry, "one picture")
