# SPDX-License-Identifier: Apache-2.0
"""Live sources over real connections to this machine, with clocks that are not to be trusted.

Time is what the camera says: a tenth of a second passes with each picture that it sends.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clip_maker import write_clip
from live_server import MJPEG, TS, jpegs, paced, serving, serving_files, ts_pieces
from own_time import in_own_time
from rtsp_server import rtp_packets, serving_rtsp
from waiting import PATIENCE, wait_for

from stc_video.video import VideoError, VideoSource, VideoWarning, open_video
from stc_video.video.timeline import FILE_GAP

FRAMES = 80
HELD = 3  # pictures that FFmpeg may hold back until more have come
LEVELS = [20 + 2 * i for i in range(FRAMES)]


def let_come(is_there: Callable[[], bool]) -> None:
    """Wait for what was sent, but not for ever: FFmpeg may hold back more than it usually does."""
    end = time.monotonic() + 3
    while not is_there() and time.monotonic() < end:
        time.sleep(0.001)


def film(kind: str, pieces: Sequence[bytes], fps: float = 2) -> tuple[VideoSource, list]:
    """Read a camera that sends ten pictures in a second; returns the source and its frames."""
    now, seen, is_open = [0.0], [], threading.Event()

    def sent() -> Iterator[bytes]:
        for index, piece in enumerate(pieces):
            yield piece
            if not is_open.is_set():  # FFmpeg looks at the first pictures before it opens
                is_open.wait(0.02 if index < FRAMES // 3 else PATIENCE)
                continue
            now[0] += 0.1
            let_come(partial(has_come, index + 1, fps * (now[0] - 1.5)))

    def has_come(pictures: int, frames: float) -> bool:
        return len(seen) >= frames and video.stats().decoded >= pictures - HELD

    with serving(kind, sent()) as address, open_video(address, fps=fps, timeout=PATIENCE) as video:
        video.clock = lambda: now[0]
        is_open.set()
        for frame in video.frames():
            seen.append(frame)  # the camera looks at them
    return video, seen


def levels(frames: list) -> list[int]:
    return [int(frame.image.mean()) for frame in frames]


def read(video: VideoSource) -> list:
    with video, warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoWarning)
        return list(video)


def test_an_mjpeg_camera_without_timestamps() -> None:
    # FFmpeg numbers its frames at 25 fps, whatever the camera does.
    video, frames = film(MJPEG, jpegs(LEVELS))
    assert video.is_live
    assert len(frames) >= 6
    assert levels(frames)[-1] > LEVELS[FRAMES // 2]
    assert levels(frames) == sorted(levels(frames))
    assert frames[-1].time > 2.5
    assert video.stats().times == "arrival"


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        pytest.param(lambda i: 0.08 * i, 0, id="clock 20 % slow"),  # shows after 10 s
        pytest.param(lambda i: 0.02 * i, 1, id="slow clock"),
        pytest.param(lambda i: 0.15 * i, 1, id="fast clock"),
        pytest.param(lambda i: 0.1 * (i % 40), 1, id="timestamps begin again"),
        pytest.param(lambda i: 0.1 * i + 3600 * (i >= 40), 1, id="jump of an hour"),
        pytest.param(lambda i: 3600 * (i < 40) + 0.1 * i, 1, id="an hour back"),
        pytest.param(lambda i: 100 * i, 1, id="wrong time base"),
    ],
)
def test_whatever_the_cameras_clock_does_its_last_frames_are_seen(
    stamp: Callable[[int], float], expected: int
) -> None:
    video, frames = film(TS, ts_pieces(LEVELS, [stamp(i) for i in range(FRAMES)]))
    assert levels(frames)[-1] > LEVELS[FRAMES // 2]
    assert len(frames) >= 6
    times = [frame.time for frame in frames]
    assert times == sorted(times)
    assert 2 < times[-1] < 60
    stats = video.stats()
    assert stats.decoded == FRAMES
    assert stats.resets + stats.jumps + stats.drifts >= expected
    assert bool(expected) <= any("timestamps" in n or "clock" in n for n in stats.notes())


def test_whoever_is_slow_gets_the_newest_frame() -> None:
    go, done = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        yield from jpegs(LEVELS[:4])
        go.wait(PATIENCE)
        yield from paced(jpegs(LEVELS[4:]), 400)

    with serving(MJPEG, pieces(), done) as address, open_video(address, fps=20) as video:
        frames = video.frames()
        first = next(frames)
        go.set()
        wait_for(lambda: video.stats().decoded >= FRAMES - 3)
        assert int(next(frames).image.mean()) >= LEVELS[-6]
        assert int(first.image.mean()) <= LEVELS[3]
        assert video.stats().skipped >= 1


def test_a_camera_that_falls_silent() -> None:
    done = threading.Event()
    with serving(MJPEG, jpegs(LEVELS[:5]), done) as address:
        video, seen = open_video(address, timeout=2), []
        with video, pytest.raises(VideoError, match=r"live has sent nothing for 2 s, after \d"):
            seen.extend(video)
    assert seen


def test_a_connection_that_ends() -> None:
    with serving(TS, ts_pieces(LEVELS[:20], [0.1 * i for i in range(20)]), cut=True) as address:
        video, seen = open_video(address), []
        with video, pytest.raises(VideoError, match="live: the connection ended after 20 frames"):
            seen.extend(video.frames())
    assert levels(seen)[-1] >= LEVELS[19] - 1


def test_an_address_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://user:secret@127.0.0.1:{server.getsockname()[1]}/x"
        with pytest.raises(VideoError, match=r"^http://127.*did not answer for 0.3 s") as caught:
            open_video(address, timeout=0.3)
    assert "secret" not in str(caught.value)


def test_a_damaged_frame_is_left_out_and_counted() -> None:
    parts = jpegs(LEVELS[:20])
    parts[10] = parts[10].replace(parts[10][150:350], bytes(200))
    with serving(MJPEG, paced(parts, 100)) as address:
        video = open_video(address)
        with video, pytest.warns(VideoWarning, match="1 damaged frames were left out"):
            assert levels(list(video))[-1] > LEVELS[15]


def test_waiting_for_a_frame_can_be_stopped() -> None:
    done, stop = threading.Event(), threading.Event()
    with (
        serving(MJPEG, jpegs(LEVELS[:5]), done) as address,
        open_video(address, timeout=PATIENCE) as video,
    ):
        video.stopped = stop.is_set
        seen = threading.Event()

        def watch() -> None:
            for _ in video:
                seen.set()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        assert seen.wait(PATIENCE)
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_pipe_is_a_live_source(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    data = b"".join(ts_pieces(LEVELS[:30], [0.1 * i for i in range(30)]))
    thread = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,), daemon=True)
    thread.start()
    video = open_video(tmp_path / "pipe")
    assert video.is_live
    assert levels(read(video))[-1] >= LEVELS[29] - 1
    thread.join()


def test_a_recording_at_an_address_is_read_like_a_file(tmp_path: Path) -> None:
    def corner(index: int) -> np.ndarray:
        image = np.full((64, 96, 3), 40, np.uint8)
        image[:32, :32] = 220
        return image

    clip = write_clip(tmp_path / "a b.mp4", 12, rate=4, paint=corner, rotation=90)
    with serving_files(tmp_path) as address, open_video(f"{address}/a b.mp4", fps=2) as video:
        assert not video.is_live
        assert (video.expected_frames, video.name, video.path) == (6, "a b.mp4", None)
        frames = list(video)
    assert [frame.time for frame in frames] == pytest.approx([0.5 * i for i in range(6)])
    with open_video(clip, fps=2) as video:
        assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, video, strict=True))
    assert frames[0].image[80:, :16].mean() > 180


@pytest.mark.parametrize("is_live", [True, False])
def test_a_playlist_is_live_until_it_has_an_end(tmp_path: Path, is_live: bool) -> None:
    pieces = ts_pieces(LEVELS[:40], [0.1 * i for i in range(40)])
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:2", "#EXT-X-MEDIA-SEQUENCE:0"]
    for number in range(2):
        (tmp_path / f"{number}.ts").write_bytes(b"".join(pieces[20 * number : 20 * number + 20]))
        lines += ["#EXTINF:2.0,", f"{number}.ts"]
    lines += [] if is_live else ["#EXT-X-ENDLIST"]
    (tmp_path / "live.m3u8").write_text("\n".join(lines) + "\n")
    with serving_files(tmp_path) as address, open_video(f"{address}/live.m3u8", fps=2) as video:
        assert video.is_live == is_live
        if not is_live:
            assert [frame.time for frame in video] == pytest.approx([0.5 * i for i in range(8)])


def test_a_recording_that_comes_slower_than_it_plays() -> None:
    pieces = ts_pieces(LEVELS[:15], [0.04 * i for i in range(15)])
    with serving(TS, pieces, size=sum(map(len, pieces))) as address:
        video, time = in_own_time(address, 25)
        video.clock = lambda: time.now + video.stats().decoded / 15  # what comes in a second
        assert len(list(video)) == 15
        assert not video.is_live
    assert video.skipped == 0
    assert time.now == 0  # nothing but the source was waited for


def test_a_long_gap_in_a_recording_is_not_waited_for(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mkv", 4, rate=10, times=[0, 1, 36000, 36001])
    video, time = in_own_time(clip, 10)
    assert [frame.time for frame in video] == pytest.approx([0, 0.1, 3600, 3600.1], abs=2e-3)
    assert video.stats().gaps == 1
    assert time.now == pytest.approx(0.1 + FILE_GAP + 0.1, abs=2e-3)


def test_a_camera_over_rtsp() -> None:
    seen, is_open, done = [], threading.Event(), threading.Event()

    def sent() -> Iterator[list[bytes]]:
        since: list[int] = []
        for index, packets in enumerate(rtp_packets(LEVELS, 10)):
            yield packets
            if is_open.wait(0.02 if index < FRAMES // 3 else PATIENCE):
                since.append(index)  # FFmpeg holds one back
                let_come(lambda: done.is_set() or len(seen) >= len(since) - 2)

    with serving_rtsp(sent()) as address:
        video = open_video(address.replace("://", "://user:secret@"), timeout=PATIENCE)
        assert video.is_live
        assert "secret" not in video.shown
        is_open.set()
        for frame in video.frames():
            seen.append(frame)
            if int(frame.image.mean()) > LEVELS[FRAMES // 2]:
                break
        done.set()
        video.close()
    assert len(seen) >= 3
