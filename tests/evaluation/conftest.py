# SPDX-License-Identifier: Apache-2.0
"""A tiny model and clips for the evaluation's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "video"))  # clip_maker


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of six seconds under names of the benchmarks, and one that is cut off."""
    from clip_maker import truncate, write_clip

    folder = tmp_path_factory.mktemp("videos")
    names = ("Ego4D/clips/a.mp4", "COIN/b.mp4", "broken.mp4", "v.mp4")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, 24, rate=4, options={"movflags": "faststart"})
    truncate(folder / "broken.mp4", 0.8)
    return folder


@pytest.fixture(scope="session")
def chat():
    from tiny_llava import make_model, make_tokenizer

    from stc_video.loading.video_llm import ChatModel

    return ChatModel(make_model(), make_tokenizer(), "tiny", random=False)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llava import make_model, make_tokenizer

    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
