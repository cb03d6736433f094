# SPDX-License-Identifier: Apache-2.0
"""Sessions in threads of their own, which share calls of the tower, and one in several threads."""

from __future__ import annotations

import threading

import torch
from tiny_llava import TOKENS, video
from waiting import PATIENCE, wait_for

from stc_video import RekvConfig

QUESTION = "what is on the table?"
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
SMALL = RekvConfig(window_tokens=3 * TOKENS, retrieve_tokens=4 * TOKENS, host_bytes=1 << 22,
                   slab_bytes=1 << 18)  # fmt: skip


def test_sessions_in_threads_share_calls_of_the_tower(model, open_session):
    streams = [video(6, seed) for seed in range(4)]
    alone = []
    for stream in streams:
        session = open_session(SMALL, prefill_chunk=1)
        for frame in stream:
            session.push(frame)
        alone.append(session.logits(QUESTION))
        session.close()

    sessions = [open_session(SMALL, prefill_chunk=1) for _ in streams]
    batches, first_in, gate = [], threading.Event(), threading.Event()

    def watch(_, args, kwargs):
        batches.append(len(kwargs["pixel_values"]))
        if len(batches) == 1:
            first_in.set()
            gate.wait(PATIENCE)

    tower = model.model.vision_tower
    hook = tower.register_forward_pre_hook(watch, with_kwargs=True)
    threads = [
        threading.Thread(target=lambda s=s, v=v: [s.push(frame) for frame in v])
        for s, v in zip(sessions, streams, strict=True)
    ]
    threads[0].start()
    assert first_in.wait(PATIENCE)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(model.stc.batcher.waiting) == 3)
    gate.set()
    for thread in threads:
        thread.join()
    hook.remove()
    assert sum(batches) == 4 * 6
    assert batches[1] >= 3  # and the first stream's next frame, if it was quick
    for session, expected in zip(sessions, alone, strict=True):
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=0)


def test_one_stream_of_a_batch_that_fails_does_not_stop_the_others(model, open_session):
    open_session("plain")
    handle, results, calls, gate = model.stc, {}, [], threading.Event()
    bad = video(1).float() + 100

    def watch(_, args, kwargs):
        calls.append(len(kwargs["pixel_values"]))
        if len(calls) == 1:
            gate.wait(PATIENCE)
        if kwargs["pixel_values"].max() > 99:
            raise ValueError("too bright")

    def run(stream, pixels):
        try:
            results[stream] = handle.encode(pixels, stream)
        except ValueError as error:
            results[stream] = error

    hook = model.model.vision_tower.register_forward_pre_hook(watch, with_kwargs=True)
    frames = {"first": video(1), "good": video(1), "bad": bad}
    threads = [threading.Thread(target=run, args=item) for item in frames.items()]
    threads[0].start()
    wait_for(lambda: calls)
    for thread in threads[1:]:
        thread.start()
    wait_for(lambda: len(handle.batcher.waiting) == 2)
    gate.set()
    for thread in threads:
        thread.join()
    hook.remove()
    assert sorted(calls) == [1, 1, 1, 2]
    assert isinstance(results["good"], torch.Tensor)
    assert str(results["bad"]) == "too bright"


def test_a_camera_may_push_while_others_ask(open_session):
    session = open_session(SMALL, prefill_chunk=2)
    session.push(video(2))
    errors: list[Exception] = []

    def guarded(work):
        def run():
            try:
                work()
            except Exception as error:
                errors.append(error)

        return threading.Thread(target=run)

    frames = video(30)

    def push():
        for frame in frames:
            session.push(frame)

    def ask():
        for _ in range(5):
            assert len(session.ask(QUESTION, **GREEDY).ids) == 6
            session.stats()

    threads = [guarded(push), guarded(ask), guarded(ask)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert session.stats().frames == 32
    other = open_session(SMALL, prefill_chunk=2)
    other.push(video(2))
    for frame in frames:
        other.push(frame)
    torch.testing.assert_close(session.logits(QUESTION), other.logits(QUESTION), atol=1e-4, rtol=0)
