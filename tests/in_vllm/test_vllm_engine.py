# SPDX-License-Identifier: Apache-2.0
"""Streams inside a real engine of vLLM: what is reused, and that it is right."""

from __future__ import annotations

import copy

import pytest
import torch
from engine_oracle import QwenOracle, SiglipOracle
from small_engine import noise, partly, video

pytest.importorskip("vllm", reason="`make test-vllm` puts vLLM into an environment of its own")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


def close(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCE)


def stock(engine, frames):
    """What the stock tower makes of each frame, and nothing of it is counted."""
    engine.forget()
    made = engine.embed(frames)
    engine.forget()
    return made


def test_profiling_leaves_no_state(engine):
    assert engine.rows_at_start == 0


def test_with_every_token_changed_it_is_the_stock_model(engine):
    frames = [noise(engine.side, seed) for seed in range(4)]
    encoder = engine.attach()
    expected = stock(engine, frames)
    answers = engine.ask(engine.shown(frames))
    assert encoder.totals.rows == 0
    engine.forget()
    close(engine.embed(frames, stc_stream="cam"), expected)
    assert encoder.totals.dense == encoder.totals.rows // 64 == 4
    engine.forget()
    assert engine.ask(engine.shown(frames, stc_stream="another")) == answers


def test_a_video_is_a_stretch_of_its_stream(engine):
    frames = [noise(engine.side, seed) for seed in range(6)]
    encoder = engine.attach()
    answers = engine.ask(video(frames))
    expected = list(engine.encoded)
    engine.forget()
    assert engine.ask(video(frames, stc_stream="cam")) == answers
    close(engine.encoded, expected)
    assert encoder.totals.dense == (6 if engine.has_views else 3)


def test_an_unchanged_frame_encodes_nothing(engine):
    frame = noise(engine.side, 7)
    encoder = engine.attach()
    first = engine.embed([frame], stc_stream="cam")
    engine.forget()
    again = engine.embed([frame], stc_stream="cam")
    assert torch.equal(first[0], again[0])
    totals = encoder.totals
    assert (totals.dense, totals.unchanged, totals.rows_encoded) == (1, 1, 64)


@pytest.mark.parametrize("frames", [2, 5])
def test_a_partly_changed_frame_equals_the_oracle(engine, frames):
    encoder = engine.attach()
    shown = [noise(engine.side, 8)]
    for seed in range(1, frames):
        shown.append(partly(shown[-1], seed))
    oracle = (SiglipOracle if engine.has_views else QwenOracle)(engine.model)
    for frame in shown:
        made = engine.embed([frame], stc_stream="cam")
        selected = encoder.last_frames[0].selected
        expected = oracle.encode(selected[0] if selected else None)
        torch.testing.assert_close(made[0], expected, **TOLERANCE)
    totals = encoder.totals
    assert (totals.dense, totals.cached) == (1, frames - 1)
    assert totals.rows_encoded < totals.rows


def test_interleaved_streams_get_what_each_gets_alone(engine):
    streams = {}
    for name, seed in (("left", 20), ("right", 30)):
        streams[name] = [noise(engine.side, seed)]
        for at in range(3):
            streams[name].append(partly(streams[name][-1], seed + at + 1))
    engine.attach()
    alone = {name: engine.embed(shown, stc_stream=name) for name, shown in streams.items()}
    encoder = engine.attach()
    for at in range(4):
        engine.encoded.clear()
        engine.ask(*(engine.shown([streams[n][at]], stc_stream=n) for n in streams), tokens=1)
        close(engine.encoded, [alone[name][at] for name in streams])
    assert (encoder.totals.dense, encoder.totals.cached) == (2, 6)


def test_named_and_nameless_items_in_one_batch(engine):
    frames = [noise(engine.side, seed) for seed in range(40, 44)]
    encoder = engine.attach()
    expected = stock(engine, frames)
    names = [{}, {"stc_stream": "a"}, {}, {"stc_stream": "b"}]
    engine.ask(*(engine.shown([f], **n) for f, n in zip(frames, names, strict=True)), tokens=1)
    close(engine.encoded, expected)
    assert encoder.totals.streams == 2


def test_many_streams_and_a_small_budget(engine):
    encoder = engine.attach()
    engine.embed([noise(engine.side, 50)], stc_stream="first")
    each = encoder.totals.state_bytes
    encoder = engine.attach(bytes=20 * each)
    frames = [noise(engine.side, 100 + at) for at in range(200)]
    expected = stock(engine, frames)
    for at, frame in enumerate(frames):
        close(engine.embed([frame], stc_stream=f"cam {at}"), [expected[at]])
        assert encoder.totals.state_bytes <= 20 * each
    assert (encoder.totals.streams, encoder.totals.evicted) == (20, 180)
    engine.forget()
    close(engine.embed([frames[0]], stc_stream="cam 0"), [expected[0]])
    assert (encoder.totals.dense, encoder.totals.unchanged) == (201, 0)


def test_a_frame_beyond_the_budget_is_encoded_as_stock(engine):
    frame = noise(engine.side, 60)
    encoder = engine.attach(bytes=1000)
    close(engine.embed([frame], stc_stream="cam"), stock(engine, [frame]))
    assert (encoder.totals.too_large, encoder.totals.streams, encoder.totals.rows) == (1, 0, 0)


def test_a_request_without_a_name_is_the_stock_one(engine):
    frames = [noise(engine.side, 70)] * 2
    encoder = engine.attach()
    made = stock(engine, frames[:1])
    encoder.detach()
    assert torch.equal(stock(engine, frames[:1])[0], made[0])
    assert encoder.totals.rows == 0


def test_a_stream_that_ends_is_dropped(engine):
    encoder = engine.attach()
    engine.embed([noise(engine.side, 80)], stc_stream="cam")
    engine.embed([noise(engine.side, 81)], stc_stream="cam", stc_end=True)
    totals = encoder.totals
    assert (totals.streams, totals.state_bytes, totals.ended) == (0, 0, 1)


def test_two_clients_of_one_name_get_no_wrong_frame(engine):
    """Each one's frames are compared with the other's: slower, and right."""
    ours = [noise(engine.side, 90 + at) for at in range(3)]
    theirs = [noise(engine.side, 95 + at) for at in range(3)]
    encoder = engine.attach()
    shown = [frame for pair in zip(ours, theirs, strict=True) for frame in pair]
    expected = stock(engine, shown)
    close(engine.embed(shown, stc_stream="one name"), expected)
    assert encoder.totals.dense == 6


def test_frames_of_another_size_start_afresh(engine):
    encoder = engine.attach()
    large = noise(engine.side, 98)
    small = noise(engine.side, 99)[: engine.side // 2]
    expected = stock(engine, [large, small])
    close(engine.embed([large, small], stc_stream="cam"), expected)
    assert (encoder.totals.dense, encoder.totals.streams) == (2, 1)


def test_new_weights_forget_the_streams(engine):
    encoder = engine.attach()
    engine.embed([noise(engine.side, 110)], stc_stream="cam")
    engine.model.load_weights([])
    assert encoder.totals.streams == 0


def test_the_frames_of_one_video_without_a_name(engine):
    """Off by default: a request without a name is the stock one."""
    still = [noise(engine.side, 120)] * 6
    encoder = engine.attach()
    answers = engine.ask(video(still))
    assert encoder.totals.rows == 0
    encoder = engine.attach(items=True)
    assert engine.ask(video(still)) == answers
    totals = encoder.totals
    unchanged = 5 if engine.has_views else 2
    assert (totals.dense, totals.unchanged, totals.streams, totals.ended) == (1, unchanged, 0, 0)


def test_a_stream_named_by_the_uuids_of_its_frames(engine):
    """One uuid, other pictures, as of two clients: none is taken for another."""
    frames = [noise(engine.side, seed) for seed in range(132, 135)]
    encoder = engine.attach()
    expected = stock(engine, frames)
    engine.embed(frames[:1], stc_stream="cam")
    for at, frame in enumerate(frames):
        engine.encoded.clear()
        request = engine.shown([frame])
        (modality,) = request["multi_modal_data"]
        request["multi_modal_uuids"] = {modality: ["stc_stream:cam/7"]}
        engine.ask(request, tokens=1)
        close(engine.encoded, expected[at : at + 1] if at else [])
    assert (encoder.totals.dense, encoder.totals.streams) == (3, 1)
    request["multi_modal_uuids"] = {modality: ["stc_end:cam/7"]}
    engine.ask(request, tokens=1)
    assert (encoder.totals.unchanged, encoder.totals.streams) == (1, 0)


def test_a_frame_that_is_not_sent_is_an_error(engine):
    engine.attach()
    request = engine.shown([noise(engine.side, 136)])
    (modality,) = request["multi_modal_data"]
    request |= {
        "multi_modal_data": {modality: [None]},
        "multi_modal_uuids": {modality: ["stc_stream:cam/7"]},
    }
    with pytest.raises(ValueError, match="must be sent"):
        engine.ask(request, tokens=1)


@pytest.mark.parametrize(
    "options", [{"stc_stream": "x" * 10_000}, {"stc_stream": 3}, {"stc_end": True}]
)
def test_a_wrong_name_is_an_error_of_the_request_alone(engine, options):
    engine.attach()
    with pytest.raises(ValueError, match="stc_"):
        engine.ask(engine.shown([noise(engine.side, 130)], **options))
    assert len(engine.embed([noise(engine.side, 131)])) == 1


@pytest.mark.parametrize(
    ("part", "setting", "value", "reason"),
    [
        ("parallel_config", "tensor_parallel_size", 2, "tensor_parallel_size must be 1, got 2"),
        ("compilation_config", "compile_mm_encoder", True, "compile_mm_encoder and"),
        ("compilation_config", "cudagraph_mm_encoder", True, "cudagraph_mm_encoder must be off"),
    ],
)
def test_settings_of_vllm_that_it_does_not_go_with(engine, part, setting, value, reason):
    from stc_video.integrations.vllm.models import _obstacle

    config = copy.deepcopy(engine.llm.llm_engine.vllm_config)
    assert _obstacle(config) == ""
    setattr(getattr(config, part), setting, value)
    assert reason in _obstacle(config)
