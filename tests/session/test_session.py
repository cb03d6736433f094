# SPDX-License-Identifier: Apache-2.0
"""`StreamingSession`: pushing, asking, and everything around it."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_llava import SIZE, TOKENS, make_model, make_tokenizer, prompt_ids, video
from transformers import TextIteratorStreamer

import stc_video
from stc_video import (
    PlainConfig,
    RekvConfig,
    StreamingSession,
    UnsupportedModelError,
    accelerate,
)
from stc_video.errors import StreamWarning

QUESTION = "what is on the table?"
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}
SMALL = RekvConfig(window_tokens=3 * TOKENS, retrieve_tokens=4 * TOKENS, host_bytes=1 << 22,
                   slab_bytes=1 << 18)  # fmt: skip


@pytest.mark.parametrize("memory", ["plain", "rekv"])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_unpruned_it_is_the_stock_model(model, open_session, memory, chunk):
    ids, pixels = prompt_ids(5, QUESTION), video(5)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids),
              "pixel_values_videos": pixels[None]}  # fmt: skip
    logits = model(**inputs).logits[0, -1]
    answer = model.generate(**inputs, **GREEDY)[0, ids.shape[1] :]
    session = open_session(memory, prefill_chunk=chunk)
    for frame in pixels:
        session.push(frame)
    torch.testing.assert_close(session.logits(QUESTION), logits, atol=1e-5, rtol=0)
    made = session.ask(QUESTION, **GREEDY)
    assert made.ids.tolist() == answer.tolist()
    assert str(made) == made.text == make_tokenizer().decode(answer).strip()
    assert made.context_tokens == ids.shape[1]


@pytest.mark.parametrize("memory", ["plain", "rekv"])
@pytest.mark.parametrize("positions", ["repacked", "original"])
def test_pruned_it_is_the_accelerated_model(model, open_session, memory, positions):
    ids, pixels = prompt_ids(5, QUESTION), video(5)
    settings = {"cache": "motion", "prune": "stc", "tokens_per_frame": 6, "positions": positions}
    # One frame at a time, as the session will: the pruner remembers chunks.
    session = open_session(memory, prefill_chunk=1, **settings)
    for frame in pixels:
        session.push(frame)
    logits = session.logits(QUESTION)
    session.close()
    with accelerate(model, **settings).stc as handle:
        kept = []
        for frame in pixels:
            kept.append(handle.prune(handle.encode(frame[None], "s"), "s"))
        indices = torch.cat([k.indices for k in kept])
        handle.pruner._choose = lambda frames: (indices, None, {})
        inputs = {"input_ids": ids, "pixel_values_videos": pixels[None]}
        expected = model(**inputs).logits[0, -1]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_the_grouping_of_frames_changes_nothing(open_session):
    found = []
    for chunk in (1, 4):
        session = open_session(SMALL, prefill_chunk=chunk)
        session.push(video(9))
        found.append(session.logits(QUESTION))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_frames_of_every_kind(open_session):
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 255, (2, 40, 60, 3), dtype=np.uint8)
    kinds = [
        [Image.fromarray(picture) for picture in pictures],
        pictures,
        torch.from_numpy(pictures).movedim(-1, 1),
        [pictures[0], Image.fromarray(pictures[1])],
        [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures],
        np.concatenate([pictures, pictures[..., :1]], -1),  # with alpha
        pictures / 255,
        torch.from_numpy(pictures / 255).movedim(-1, 1),
        pictures.astype(np.uint16) * 257,
    ]
    found = []
    for kind in kinds:
        session = open_session("plain")
        session.push(kind, timestamps=np.array([0.0, 0.5], np.float32))
        found.append(session.logits(QUESTION))
        assert session.stats().frames == 2
    assert all(torch.equal(found[0], other) for other in found[1:])
    session = open_session("plain")
    session.push(pictures[0])
    session.push(np.zeros((50, 50, 3), np.uint8), timestamps=3.0)
    session.push([pictures[0], np.zeros((50, 50, 3), np.uint8)])  # of two sizes
    assert session.stats().frames == 4


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        (
            "clip.mp4",
            TypeError,
            "must be PIL images, PyAV frames, NumPy arrays or tensors, got str",
        ),
        (np.full((4, 4, 3), 255.0), ValueError, "must be between 0 and 1, got 255 to 255"),
        (np.zeros((5, 5, 2), np.uint8), ValueError, r"with C of 1, 3 or 4.*got shape \(5, 5, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), ValueError, "at least one pixel"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "at least one pixel"),
        (torch.zeros((3, 4, 4), dtype=torch.int32), TypeError, "got int32"),
        (torch.zeros((3, 4, 4)) - 1, ValueError, "prepared pixels must have the tower's size"),
        ([], ValueError, "got none"),
        ([np.zeros((4, 4, 3), np.uint8), None], TypeError, "got NoneType"),
    ],
)
def test_a_malformed_frame_is_refused_and_loses_nothing(open_session, frames, error, message):
    session = open_session(SMALL)
    session.push(video(2))
    before = session.logits(QUESTION)
    with pytest.raises(error, match=message):
        session.push(frames)
    with pytest.raises(ValueError, match="timestamps must be one for each of 2 frames, got 1"):
        session.push(video(2), timestamps=[1.0])
    assert session.stats().frames == 2
    assert torch.equal(session.logits(QUESTION), before)


def test_times_that_go_back_are_kept_and_counted(open_session):
    session = open_session(SMALL)
    session.push(video(2), timestamps=[5.0, 6.0])
    with pytest.warns(StreamWarning, match=r"timestamps went back from 6.000 s to 2.000 s"):
        pushed = session.push(video(3), timestamps=[2.0, 3.0, 1.0])
    assert [frame.time for frame in pushed] == [2.0, 3.0, 1.0]
    assert session.stats().times_back == 2
    session.push(video(1))
    session.push(video(1), timestamps=1.0)
    assert session.stats().times_back == 2
    with pytest.raises(ValueError, match="a timestamp must be a finite number of seconds, got nan"):
        session.push(video(1), timestamps=float("nan"))
    session.reset()
    session.push(video(1), timestamps=0.0)
    assert (session.stats().frames, session.stats().times_back) == (1, 0)


def test_totals_are_printed_in_a_few_lines(open_session):
    session = open_session("rekv", cache="motion", prune="stc", tokens_per_frame=6, prefill_chunk=2)
    for frame in video(3):
        session.push(frame)
    lines = str(session.stats()).splitlines()
    assert lines[0].startswith(f"3 frames (1 waiting): 18 of {3 * TOKENS} tokens kept, ")
    assert "encode" in lines[1]
    assert lines[-3].startswith("cacher: 3 frames: ")
    assert len(lines) == 6


def test_a_question_before_any_frame(open_session):
    session = open_session(SMALL)
    for ask in (session.ask, session.logits):
        with pytest.raises(ValueError, match="no frame has been pushed yet"):
            ask(QUESTION)
    session.push(video(1))
    assert session.ask(QUESTION, max_new_tokens=2).frame == 1
    session.reset()
    with pytest.raises(ValueError, match="no frame has been pushed yet"):
        session.ask(QUESTION)


def test_a_picture_that_passes_for_prepared_pixels_is_warned_of(open_session):
    session = open_session(SMALL)
    with pytest.warns(StreamWarning, match=f"size, {SIZE} x {SIZE}, is taken as normalised"):
        session.push(torch.full((3, SIZE, SIZE), 0.5))


def test_wrong_settings_leave_the_model_untouched(model, open_session):
    before = set(model.__dict__)
    for memory, settings, message in [
        ("large", {}, "must be one of plain, rekv, window or a configuration, got 'large'"),
        ("rekv", {"prefill_chunk": 0}, "prefill_chunk must be a whole number from 1, got 0"),
        ("rekv", {"prune": "no"}, "name must be one of"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_session(memory, **settings)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="must have a chat template, got none"):
        StreamingSession(model, tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'][1]['text'] }}<video>"
    with pytest.raises(ValueError, match="must write <video> and then the question"):
        StreamingSession(model, tokenizer)
    with pytest.raises(UnsupportedModelError):
        StreamingSession(torch.nn.Linear(2, 2), tokenizer)
    assert set(model.__dict__) == before
    for name, value, message in [
        ("window_tokens", 0, "window_tokens must be a whole number from 1, got 0"),
        ("host_bytes", -1, "host_bytes must be a whole number from 0"),
        ("eviction", "newest", "eviction must be one of oldest, redundant, refuse"),
        ("storage", "int3", "storage must be one of exact, int8, int4"),
        ("retrieval", "best", "retrieval must be one of"),
        ("diversity", 1.5, "diversity must be between 0 and 1, got 1.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            RekvConfig(**{name: value})
    with pytest.raises(ValueError, match="max_tokens must be a whole number from 1"):
        PlainConfig(max_tokens=0)


def test_questions_do_not_influence_each_other(open_session):
    session = open_session(SMALL)
    session.push(video(9))
    questions = ["what?", "where did the cup go?", "who?"]
    first = [session.ask(q, **GREEDY).ids.tolist() for q in questions]
    second = [session.ask(q, **GREEDY).ids.tolist() for q in reversed(questions)]
    assert first == second[::-1]
    with pytest.raises(ValueError, match="the question must be a text, got ' '"):
        session.ask(" ")


def test_a_dialogue_keeps_its_turns_and_the_memory_does_not(open_session, model):
    session = open_session("plain")
    session.push(video(3))
    alone = session.logits("and then?")
    first = session.ask(QUESTION, dialogue=True, **GREEDY)
    assert torch.equal(session.logits("and then?"), alone)
    second = session.ask("and then?", dialogue=True, **GREEDY)

    tokenizer = make_tokenizer()
    text = tokenizer.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": [{"type": "text", "text": first.text}]},
            {"role": "user", "content": [{"type": "text", "text": "and then?"}]},
        ],
        tokenize=False, add_generation_prompt=True,
    )  # fmt: skip
    ids = tokenizer(text.replace("<video>", "<video>" * (3 * TOKENS + 1)), return_tensors="pt")
    made = model.generate(**ids, pixel_values_videos=video(3)[None], **GREEDY)
    assert second.ids.tolist() == made[0, ids.input_ids.shape[1] :].tolist()
    session.reset()
    session.push(video(3))
    assert session.ask("and then?", dialogue=True, **GREEDY).ids.tolist() != second.ids.tolist()


def test_a_streamer_gets_the_answer_and_not_the_video(open_session):
    session = open_session("rekv")
    session.push(video(3))
    for skip in (True, False):
        streamer = TextIteratorStreamer(make_tokenizer(), skip_prompt=skip)
        answer = session.ask(QUESTION, streamer=streamer, **GREEDY)
        text = "".join(streamer)
        assert text.strip().endswith(make_tokenizer().decode(answer.ids).strip())
        assert (QUESTION in text) is not skip
        assert text.count("<video>") == (0 if skip else 1)


def test_stats_and_reset(open_session):
    session = open_session(SMALL, cache="motion", prune="stc", tokens_per_frame=6, prefill_chunk=4)
    session.push(video(10), timestamps=range(10))
    answer = session.ask(QUESTION, **GREEDY)
    stats = session.stats()
    assert (stats.frames, stats.waiting, stats.tokens_seen) == (10, 0, 10 * TOKENS)
    assert stats.tokens_kept == 60
    assert stats.cache.frames == 10
    assert stats.bytes["cacher"] > 0
    assert stats.bytes["pruner"] > 0
    counts = {stage: times.count for stage, times in stats.stages.items()}
    assert counts == {"decode": 1, "encode": 3, "prune": 3, "prefill": 3, "retrieve": 1,
                      "generate": 1}  # fmt: skip
    assert all(0 < times.median <= times.p99 <= times.seconds for times in stats.stages.values())
    assert answer.seconds == {
        stage: stats.stages[stage].seconds for stage in ("retrieve", "generate")
    }
    assert [(f.number, f.time) for f in answer.retrieved] == [(n, float(n)) for n in range(10)]
    assert answer.frame == 10

    fresh = open_session(SMALL, prefill_chunk=4)  # shares the model's acceleration
    fresh.push(video(4))
    session.reset()
    assert session.stats().frames == session.stats().bytes["cacher"] == 0
    session.push(video(4))
    assert torch.equal(session.logits(QUESTION), fresh.logits(QUESTION))


def test_a_turn_of_a_stream_that_was_forgotten_meanwhile_is_dropped(open_session):
    class Resets(TextIteratorStreamer):
        def put(self, value):
            if session.stats().frames == 3:
                session.reset()
                session.push(video(4))

    session = open_session("plain")
    session.push(video(3))
    session.ask("who was there?", dialogue=True, streamer=Resets(make_tokenizer()), **GREEDY)
    alone = session.ask(QUESTION, **GREEDY).ids
    assert torch.equal(session.ask(QUESTION, dialogue=True, **GREEDY).ids, alone)


def test_a_question_whose_ends_the_template_trims(model, open_session):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("part['text']", "part['text'] | trim")
    with StreamingSession(model, tokenizer, memory="plain", cache=None, prune="none") as session:
        session.push(video(2))
        expected = session.ask(QUESTION, **GREEDY).ids
        assert torch.equal(session.ask(f" {QUESTION}\n", **GREEDY).ids, expected)


def test_the_model_is_restored_with_the_last_session(model, open_session):
    before = set(model.__dict__)
    one, two = open_session("plain"), open_session("rekv")
    handle = model.stc
    assert handle.users == 2
    one.close()
    one.close()
    two.push(video(1))
    two.close()
    assert set(model.__dict__) == before
    with pytest.raises(ValueError, match="the session is closed"):
        two.push(video(1))
    with accelerate(model).stc as handle, StreamingSession(model, make_tokenizer()) as session:
        session.close()
        assert model.stc is handle


def test_a_model_that_is_cast_under_a_session_is_named():
    model = make_model()
    with StreamingSession(model, make_tokenizer(), memory="plain", prune="none") as session:
        session.push(video(2))
        model.to(torch.bfloat16)
        for go_on in (lambda: session.push(video(1)), lambda: session.ask(QUESTION)):
            with pytest.raises(ValueError, match=r"float32 on cpu, got torch.bfloat16 on cpu"):
                go_on()
        model.to(torch.float32)
        session.push(video(1))
        assert session.stats().frames == 3


def test_names_are_exported():
    assert stc_video.StreamingSession is StreamingSession
