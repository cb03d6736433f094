# SPDX-License-Identifier: Apache-2.0
"""A stage in a thread of its own: the same items, a bounded number ahead, and no thread left."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from waiting import wait_for

from stc_video import attach_cacher, make_pruner
from stc_video.loading.vision import load_model
from stc_video.video import VideoError, ahead, default_clip, open_video


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_items_come_in_their_order_none_included(depth):
    items = [None, 0, "a", None]
    assert list(ahead(ahead(items, depth), depth)) == items
    assert list(ahead([], depth)) == []
    assert not threads()


@pytest.mark.parametrize("depth", [1, 3])
def test_no_more_is_made_than_may_wait(depth):
    made = []

    def source():
        for number in range(100):
            made.append(number)
            yield number

    items = ahead(source(), depth)
    assert not made  # the thread starts with the first item that is wanted
    for taken in range(4):
        assert next(items) == taken
    wait_for(lambda: len(made) == 4 + depth)
    time.sleep(0.05)
    assert len(made) == 4 + depth
    items.close()
    assert len(made) == 4 + depth
    assert not threads()


def test_an_error_comes_behind_the_items_before_it():
    def source():
        yield 1
        yield 2
        raise VideoError("damaged")

    items = ahead(ahead(source()))
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(VideoError, match="damaged"):
        next(items)
    assert not threads()


def test_all_stages_end_where_the_last_one_is_left():
    closed = []

    def source():
        try:
            yield from range(10)
        finally:
            closed.append(threading.current_thread().name)

    for item in ahead(item for item in ahead(source())):
        if item == 3:
            break
    wait_for(lambda: not threads())
    assert closed == ["ahead"]


def test_a_depth_of_nothing_is_refused():
    with pytest.raises(ValueError, match="depth"):
        next(ahead([1], 0))


def test_a_pipeline_of_threads_gives_the_same_tokens_bit_for_bit():
    model = load_model("dinov2-small")

    def run(wrap):
        pruner = make_pruner("stc", tokens_per_frame=16)
        with open_video(default_clip(), fps=5, max_frames=8) as video:
            cacher = attach_cacher(model.tower)
            inputs = (model.pixels([frame.image]) for frame in wrap(video))
            kept = []
            with torch.inference_mode():
                for one in wrap(inputs):
                    tokens = model.encode(one)
                    found = pruner(model.features(tokens), grid=model.feature_grid)
                    kept.append((tokens, found.tokens, found.indices))
            cacher.detach()
        return kept

    one_after_the_other, overlapped = run(iter), run(ahead)
    assert len(overlapped) == 8
    for expected, got in zip(one_after_the_other, overlapped, strict=True):
        assert all(map(torch.equal, expected, got))
