# SPDX-License-Identifier: Apache-2.0
"""`stc chat` with a piped conversation."""

from __future__ import annotations

import functools
import http.server
import io
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_server import TS, paced, serving, ts_pieces
from own_time import in_own_time

from stc_video.cli.app import run_app
from stc_video.video.live import LiveVideo

MODEL = ("--model", "llava-onevision-tiny", "--threads", "1", "--max-new-tokens", "6")


@pytest.fixture
def talk(monkeypatch, capsys) -> Callable[..., tuple[int, str]]:
    def say(source: object, lines: list[str], *options: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = run_app(["chat", str(source), *MODEL, *map(str, options)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return say


@pytest.fixture
def address(clip: Path) -> Iterator[str]:
    """The clip on an HTTP server of this machine."""
    handler = functools.partial(_Quiet, directory=clip.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{clip.name}"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_conversation(talk, clip: Path) -> None:
    lines = ["/wait", "what is it?", "", "/stats", "/help", "/reset", "and now?", "/quit", "never"]
    code, said = talk(clip, lines, "--fast", "--fps", 2)
    assert code == 0
    assert "random weights: the answers are noise" in said
    assert "> what is it?" in said
    assert "12 frames seen, answered from 12 (... 00:03.0, 00:03.5, 00:04.0" in said
    assert "12 frames seen, 0 skipped" in said
    assert "generate" in said
    assert "Forgotten." in said
    assert "no frame has been pushed yet" in said
    assert "never" not in said


def test_a_video_runs_in_its_own_time(clip: Path) -> None:
    video, time = in_own_time(clip, 4)
    times, moments = [], []
    for frame in video:
        times.append(frame.time)
        moments.append(time.now)
        if len(times) == 4:
            time.set()
    assert times == pytest.approx([0, 0.25, 0.5, 0.75])
    assert moments == pytest.approx(times)


def test_no_frame_comes_before_its_time(clip: Path) -> None:
    begin = time.monotonic()
    for frame in LiveVideo(str(clip), 4, threading.Event(), fast=False):
        assert time.monotonic() - begin >= frame.time
        if frame.time >= 0.5:
            break


def test_frames_that_come_too_late_are_skipped_and_counted(clip: Path) -> None:
    video, time = in_own_time(clip, 4)
    frames = iter(video)
    assert next(frames).number == 0
    time.now = 1.6
    # 0.25 to 1.25 s are more than one interval late.
    assert next(frames).index == 6
    assert video.skipped == 5


def test_a_recording_at_an_address_is_one(address: str, talk) -> None:
    frames = itertools.islice(in_own_time(address, 2)[0], 3)
    assert [frame.time for frame in frames] == pytest.approx([0, 0.5, 1.0])
    code, said = talk(address, ["/wait", "what is it?", "/quit"], "--fast")
    assert code == 0
    assert "The video has ended" in said
    assert "12 frames seen, answered from 12" in said


def test_a_camera_at_an_address_with_a_clock_of_its_own(talk) -> None:
    pieces = ts_pieces(range(40, 100, 2), [0.1 * (i % 15) for i in range(30)])
    done = threading.Event()
    with serving(TS, paced(pieces, 30), done) as address:
        code, said = talk(address, ["what is it?", "/wait", "/stats", "/quit"], "--fps", 10)
        done.set()
        assert code == 0
        assert "/wait is for recordings" in said
        assert "frames seen, answered from" in said
    with serving(TS, ts_pieces([40] * 30, [0.1 * i for i in range(30)]), done) as address:
        code, said = talk(address, ["what is it?"], "--fast")
    assert (code, "--fast is for recordings" in said) == (2, True)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("missing.mp4", [], "there is no such file"),
        ("CLIP", ["--fps", "0"], "--fps must be a positive number"),
        ("/dev/video0", ["--fast"], "--fast is for recordings"),
        ("/dev/video99", [], "cannot be read"),
        ("http://127.0.0.1:9/x", [], "cannot be read"),
        ("CLIP", ["--storage", "int3"], "storage must be one of exact, int8, int4"),
    ],
)
def test_bad_input_is_one_sentence(talk, clip: Path, source, options, message) -> None:
    code, said = talk(str(clip) if source == "CLIP" else source, ["what?"], *options)
    assert code == 2
    assert message in said
    assert "Traceback" not in said
