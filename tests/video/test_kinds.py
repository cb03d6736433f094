# SPDX-License-Identifier: Apache-2.0
"""Files of every kind: joined, turned, deep, with odd names and odd times."""

from __future__ import annotations

import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clip_maker import write_clip
from live_server import grey, ts_pieces

from stc_video.video import VideoError, VideoWarning, open_video
from stc_video.video.location import locate


def read(path: object, **options: object) -> list:
    with open_video(path, **options) as video, warnings.catch_warnings():
        warnings.simplefilter("error", VideoWarning)
        return list(video)


def joined(folder: Path) -> Path:
    pieces = ts_pieces([40] * 50 + [200] * 50, [1.4 + 0.1 * (i % 50) for i in range(100)])
    (folder / "day.ts").write_bytes(b"".join(pieces))
    return folder / "day.ts"


def test_two_recordings_joined_by_cat_are_both_read(tmp_path: Path) -> None:
    with open_video(joined(tmp_path), fps=2) as video:
        with pytest.warns(VideoWarning, match=r"day\.ts: its timestamps began again once"):
            frames = list(video)
        assert video.stats().resets == 1
    assert [frame.time for frame in frames] == pytest.approx([0.5 * i for i in range(20)], abs=0.05)
    assert [frame.image.mean() > 120 for frame in frames] == [False] * 10 + [True] * 10


@pytest.mark.parametrize("begins", [(1000.0, 1.4), (95443.0, 0.3)])
def test_joined_recordings_whose_clocks_are_far_apart(tmp_path: Path, begins: tuple) -> None:
    # FFmpeg takes a much earlier timestamp for one after 2**33 ticks of 90 kHz, which is 26.5 h on.
    times = [begins[i // 10] + 0.04 * (i % 10) for i in range(20)]
    (tmp_path / "a.ts").write_bytes(b"".join(ts_pieces(range(40, 80, 2), times)))
    with open_video(tmp_path / "a.ts") as video, pytest.warns(VideoWarning, match="again once"):
        seconds = [frame.time for frame in video]
    assert seconds == pytest.approx([0.04 * i for i in range(20)], abs=1e-3)


def test_recordings_with_a_pause_between_keep_it(tmp_path: Path) -> None:
    times = [1.4 + 0.04 * i + 600 * (i >= 10) for i in range(20)]
    (tmp_path / "a.ts").write_bytes(b"".join(ts_pieces(range(40, 80, 2), times)))
    with open_video(tmp_path / "a.ts") as video, pytest.warns(VideoWarning, match="a gap once"):
        assert [frame.time for frame in video][-1] == pytest.approx(600 + 0.04 * 19)


JOINED = {
    "a.mkv": "mpeg4", "a.webm": "libvpx", "a.avi": "mpeg4", "a.mpg": "mpeg2video",
    "a.h264": "libx264", "a.mp4": "mpeg4", "a.mov": "mpeg4", "a.flv": "flv", "a.wmv": "msmpeg4v3",
    "a.nut": "mpeg4",
}  # fmt: skip
NOISE = np.random.default_rng(0).integers(0, 60, (25, 64, 96, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", JOINED)
def test_a_joined_recording_is_read_or_said_to_be_lost(tmp_path: Path, name: str) -> None:
    data = b""
    for level in (20, 180):

        def paint(index: int, level: int = level) -> np.ndarray:
            return NOISE[index] + np.uint8(level)

        clip = write_clip(tmp_path / name, 25, rate=25, codec=JOINED[name], paint=paint, quality=2)
        assert len(read(clip)) == 25
        data += clip.read_bytes()
    clip.write_bytes(data)
    frames, problem = [], ""
    with open_video(clip) as video:
        try:
            frames.extend(video.frames())
        except VideoError as error:
            problem = str(error)
    bright = sum(frame.image.mean() > 120 for frame in frames)
    assert len(frames) - bright == 25
    assert bright == 25 or "frame 2" in problem


def test_a_start_in_the_second_of_two_recordings(tmp_path: Path) -> None:
    with open_video(joined(tmp_path), fps=2, start=7) as video, pytest.warns(VideoWarning):
        frames = list(video)
    assert [frame.time for frame in frames] == pytest.approx([7, 7.5, 8, 8.5, 9, 9.5], abs=0.05)
    assert all(frame.image.mean() > 120 for frame in frames)


# -- turned ----------------------------------------------------------------------------------


def corners(index: int) -> np.ndarray:
    """Upper left bright red, upper right bright green."""
    image = np.full((64, 96, 3), 40, np.uint8)
    image[:32, :48, 0] = image[:32, 48:, 1] = 220
    return image


@pytest.mark.parametrize("flips", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_turned_and_mirrored(tmp_path: Path, rotation: int, flips: tuple[bool, bool]) -> None:
    clip = write_clip(tmp_path / "a.mp4", 1, paint=corners, rotation=rotation, flips=flips)
    image = read(clip)[0].image.astype(int)
    expected = np.rot90(corners(0), rotation // 90)
    if flips[0]:
        expected = expected[:, ::-1]
    if flips[1]:
        expected = expected[::-1]
    assert image.shape == expected.shape
    assert np.abs(image - expected).mean() < 12


def test_pixels_that_are_no_squares(tmp_path: Path) -> None:
    def wide(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    clip = write_clip(tmp_path / "a.mkv", 2, setup=wide)
    with open_video(clip) as video:
        assert (video.width, video.height) == (96, 64)
        assert next(iter(video)).image.shape == (64, 192, 3)


# -- pixel formats ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    ["yuv420p", "yuv444p", "yuv420p10le", "yuva420p", "gray", "gray10le", "gray16le", "bgra"],
)
def test_deep_pixels_grey_ones_and_an_alpha_channel(tmp_path: Path, pixels: str) -> None:
    def ramp(index: int) -> np.ndarray:
        return np.repeat(np.linspace(0, 255, 97).astype(np.uint8)[None, :, None], 63, 0).repeat(
            3, 2
        )

    clip = write_clip(tmp_path / "a.mkv", 2, codec="ffv1", pixels=pixels, paint=ramp)
    image = read(clip)[1].image.astype(int)
    assert image.shape == (63, 97, 3)
    assert np.abs(image - ramp(0)).mean() < 2


# -- times -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm"])
def test_a_last_picture_that_stands_is_no_damage(tmp_path: Path, name: str) -> None:
    codec = "libvpx" if name.endswith("webm") else "mpeg4"
    clip = write_clip(tmp_path / name, 6, rate=4, codec=codec, last=400)
    with open_video(clip) as video:
        assert video.duration > 5
        assert len(list(video)) == 6


def test_a_long_standing_picture_does_not_blur_the_sampling(tmp_path: Path) -> None:
    # Its average rate is 0.6 fps, of which a tenth of an interval would be 0.16 s.
    clip = write_clip(tmp_path / "a.mp4", 6, rate=10, times=[0, 1, 2, 9, 10, 100])
    assert [frame.time for frame in read(clip, fps=1)] == pytest.approx([0, 1, 10])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_b_frames_and_a_begin_that_is_not_zero(tmp_path: Path, name: str) -> None:
    def with_b_frames(stream: Any) -> None:
        stream.codec_context.max_b_frames = 2

    times = [50 + i for i in range(12)]
    clip = write_clip(tmp_path / name, 12, rate=10, times=times, setup=with_b_frames)
    frames = read(clip)
    assert [f.time for f in frames] == pytest.approx([i / 10 for i in range(12)], abs=2e-3)


def test_a_stream_without_timestamps(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.m4v", 10, rate=25)
    assert [f.time for f in read(clip)] == pytest.approx([i / 25 for i in range(10)])


def test_a_gap_of_an_hour_is_kept_and_said(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", 4, rate=10, times=[0, 1, 36000, 36001])
    with open_video(clip, fps=10) as video, pytest.warns(VideoWarning, match="it had a gap once"):
        assert [f.time for f in video] == pytest.approx([0, 0.1, 3600, 3600.1], abs=2e-3)


# -- what is no video ------------------------------------------------------------------------


def write_music(path: Path, *, film: bool) -> Path:
    """Sound with a cover picture, which FFmpeg calls a video stream, and perhaps a video too."""
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=8000)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
        if not hasattr(cover, "disposition"):
            pytest.skip("this PyAV does not tell a cover from a video")
        cover.disposition = 0x400
        if film:
            moving: Any = container.add_stream("mpeg4", rate=4)
            moving.width, moving.height, moving.pix_fmt = 96, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        frame.pts = 0
        container.mux([*cover.encode(frame), *cover.encode(None)])
        if film:
            for index in range(4):
                frame = av.VideoFrame.from_ndarray(grey(200), format="rgb24")
                frame.pts = index
                container.mux(moving.encode(frame))
            container.mux(moving.encode(None))
        noise = av.AudioFrame.from_ndarray(
            np.zeros((1, 4000), np.float32), format="fltp", layout="mono"
        )
        noise.sample_rate, noise.pts = 8000, 0
        container.mux([*sound.encode(noise), *sound.encode(None)])
    return path


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="has no video stream, only a cover picture"):
        open_video(write_music(tmp_path / "song.mp4", film=False))
    frames = read(write_music(tmp_path / "film.mp4", film=True))
    assert [frame.image.shape for frame in frames] == [(64, 96, 3)] * 4


# -- names -----------------------------------------------------------------------------------

NAMES = [
    "cam 12:30:05.mkv",
    "http:clip.mkv",
    "100%.mkv",
    "%20.mkv",
    "frame%03d.mkv",
    "a?b#c.mkv",
    "C:\\clips\\a.mkv",
    "-a.mkv",
    "Türe 1.mkv",
    "concat:a|b.mkv",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_character_of_a_name_is_one(tmp_path: Path, monkeypatch, name: str) -> None:
    path = write_clip(tmp_path / "a.mkv", 2).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for source in (name, Path(name), str(path), f"file:{path}", path.as_uri()):
        with open_video(source) as video:
            assert len(list(video)) == 2
            assert not video.is_live
            assert video.name == name
            assert video.path == (Path(name) if source in (name, Path(name)) else path)


def test_a_folder_that_looks_like_an_address(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rtsp:" / "camera").mkdir(parents=True)
    write_clip(tmp_path / "rtsp:" / "camera" / "a.mkv", 2)
    monkeypatch.chdir(tmp_path)
    assert len(read("rtsp://camera/a.mkv")) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("C:\\clips\\missing.mp4", r"^C:\\clips\\missing.mp4: there is no such file"),
        ("file:///missing%20one.mp4", "^/missing one.mp4: there is no such file"),
        ("a\0b.mp4", "there is no such file"),
        ("a" * 5000, "there is no such file"),
        (Path("rtsp://camera/live"), "give an address as a text, a path merges its slashes"),
        ("nothing://x/y", r"^nothing://x/y cannot be read \(Protocol not found\)"),
        ("http://me:secret@127.0.0.1:1/x", r"^http://127.0.0.1:1/x cannot be read"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(source: object, message: str) -> None:
    with pytest.raises(VideoError, match=message) as caught:
        open_video(source)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_addresses_keep_their_password_to_themselves() -> None:
    where = locate("rtsp://me:p@ss@10.0.0.5:554/h264/ch1?a=b@c")
    assert where.url == "rtsp://me:p@ss@10.0.0.5:554/h264/ch1?a=b@c"
    assert where.shown == "rtsp://10.0.0.5:554/h264/ch1?a=b@c"
    assert where.name == "ch1"
    assert locate("http://camera/").name == "camera"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mp4", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("a.ffconcat", "ffconcat version 1.0\nfile secret.mp4\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nsecret.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_a_file_cannot_name_another_one(tmp_path: Path, name: str, text: str) -> None:
    write_clip(tmp_path / "secret.mp4", 12, rate=4)
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match="is not a video but names others"):
        read(tmp_path / name)


def test_a_title_that_is_no_text_does_not_matter(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", 4, rate=4)
    with av.open(str(clip)) as source, av.open(str(tmp_path / "b.mp4"), "w") as titled:
        titled.metadata["title"] = "a title of mine"
        stream = titled.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                titled.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    assert b"a title of mine" in data
    (tmp_path / "b.mp4").write_bytes(data.replace(b"a title of mine", b"a title \xff\xfe mine"))
    assert len(read(tmp_path / "b.mp4")) == 4
