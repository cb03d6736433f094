# SPDX-License-Identifier: Apache-2.0
"""Many cameras in one step: who is there goes together, what nobody takes is counted."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch
from waiting import PATIENCE, wait_for

from stc_video import attach_cacher
from stc_video.loading.vision import load_model
from stc_video.video import (
    CameraLoop,
    VideoError,
    VideoFrame,
    VideoWarning,
    default_clip,
    open_video,
)


class Camera:
    """Gives a frame each time that it is told to."""

    def __init__(self) -> None:
        self.frames, self.given = threading.Semaphore(0), 0
        self.error: Exception | None = None

    def show(self) -> None:
        self.frames.release()

    def break_off(self, error: Exception | None) -> None:
        self.error = error or StopIteration()
        self.frames.release()

    def __iter__(self):
        while self.frames.acquire(timeout=PATIENCE):
            if self.error is not None:
                if isinstance(self.error, StopIteration):
                    return
                raise self.error
            self.given += 1
            yield VideoFrame(np.zeros((2, 2, 3), np.uint8), 0.5 * self.given, 0, self.given - 1)


def test_frames_that_arrive_within_the_wait_come_together_in_the_order_of_the_sources():
    cameras = {"b": Camera(), "a": Camera(), "silent": Camera()}
    with CameraLoop(cameras, wait=10.0) as loop:
        steps = iter(loop)
        cameras["silent"].break_off(None)
        cameras["a"].show()
        cameras["b"].show()
        begin = time.monotonic()
        assert list(next(steps)) == ["b", "a"]
        assert time.monotonic() - begin < 10.0  # nobody waits for a camera that has ended


def test_a_camera_alone_waits_no_longer_than_it_was_told():
    cameras = {"a": Camera(), "b": Camera()}
    with CameraLoop(cameras, wait=0.0) as loop:
        steps = iter(loop)
        for number in range(3):
            cameras["a"].show()
            [(name, frame)] = next(steps).items()
            assert (name, frame.index) == ("a", number)
    assert loop.lost == {"a": 0, "b": 0}


def test_what_nobody_takes_is_passed_over_and_counted():
    cameras = {"a": Camera(), "b": Camera()}
    with CameraLoop(cameras, wait=0.0) as loop:
        steps = iter(loop)
        cameras["a"].show()
        next(steps)
        for _ in range(4):
            cameras["a"].show()
        wait_for(lambda: loop.lost["a"] == 3)
        assert next(steps)["a"].index == 4
    assert loop.lost == {"a": 3, "b": 0}


def test_a_camera_that_breaks_off_is_named_and_the_others_go_on():
    cameras = {"a": Camera(), "b": Camera()}
    loop = CameraLoop(cameras, wait=0.0)
    steps = iter(loop)
    cameras["a"].break_off(VideoError("the camera is gone"))
    cameras["b"].show()

    def taken() -> list[list[str]]:
        first = next(steps)
        cameras["b"].break_off(None)
        return [list(first), *map(list, steps)]

    with pytest.warns(VideoWarning, match=r"^a: the camera is gone$") as told:
        assert taken() == [["b"]]
    assert len(told) == 1
    assert list(loop.errors) == ["a"]
    assert str(loop.errors["a"]) == "the camera is gone"


def test_closing_ends_the_iteration_in_another_thread():
    loop = CameraLoop({"a": Camera()})
    steps: list[object] = []
    reader = threading.Thread(target=lambda: steps.extend(loop), daemon=True)
    reader.start()
    loop.close()
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert steps == []


def test_cameras_are_encoded_as_each_alone():
    """Real sources and a real tower: streams of a call do not mix."""
    model = load_model(None)
    alone: dict[str, torch.Tensor] = {}
    starts = {"early": 0.0, "late": 1.0}
    with torch.inference_mode():
        for name, start in starts.items():
            with open_video(default_clip(), fps=2, start=start, max_frames=1) as video:
                [frame] = video
            alone[name] = model.encode(model.pixels([frame.image]))
        cacher = attach_cacher(model.tower)
        sources = {
            n: open_video(default_clip(), fps=2, start=s, max_frames=1) for n, s in starts.items()
        }
        with CameraLoop(sources, wait=10.0) as loop:
            for frames in loop:
                with cacher.streams(list(frames)):
                    tokens = model.encode(model.pixels([f.image for f in frames.values()]))
                for row, name in enumerate(frames):
                    torch.testing.assert_close(
                        tokens[row], alone.pop(name)[0], rtol=1e-4, atol=1e-4
                    )
    assert not alone
    assert not loop.errors


@pytest.mark.parametrize("wait", [-0.1, 11.0, float("nan")])
def test_a_wait_out_of_range_is_refused(wait):
    with pytest.raises(ValueError, match="CameraLoop: wait must be between 0 and 10, got"):
        CameraLoop({"a": Camera()}, wait=wait)


def test_no_camera_is_refused():
    with pytest.raises(ValueError, match="CameraLoop: sources must name at least one camera"):
        CameraLoop({})
