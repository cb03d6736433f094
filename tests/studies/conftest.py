# SPDX-License-Identifier: Apache-2.0
"""A tiny tower; and where the helpers of other tests are: the browser, the maker of clips."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model

from stc_video.loading.vision import LoadedModel, load_model

sys.path.append(str(Path(__file__).parents[1] / "report"))  # browser
sys.path.append(str(Path(__file__).parents[1] / "video"))  # clip_maker


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=56,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Dinov2Model(config).save_pretrained(folder)
    return load_model(str(folder))
