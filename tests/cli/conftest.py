# SPDX-License-Identifier: Apache-2.0
"""Clips and a small trained-like tower for the command line's tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "video"))  # clip_maker


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from clip_maker import write_clip

    # Its index comes first, so that a copy can be cut off and still be opened.
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return write_clip(path, 24, rate=4, options={"movflags": "faststart"})


@pytest.fixture(scope="session")
def tower_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 saved as a folder, as a user would have it."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=112,
        patch_size=14,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-dinov2"
    Dinov2Model(config).save_pretrained(folder)
    return folder
