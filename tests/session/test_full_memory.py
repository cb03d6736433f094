# SPDX-License-Identifier: Apache-2.0
"""A memory that is full and may not forget: what is refused, and what is counted."""

from __future__ import annotations

import pytest
import torch
from tiny_llava import TOKENS, video

from stc_video import MemoryFullError, PlainConfig, make_pruner

QUESTION = "what is on the table?"
GREEDY = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None}


def test_a_plain_memory_refuses_to_pass_its_limit(open_session):
    session = open_session(PlainConfig(max_tokens=100), prefill_chunk=2)
    prefix = session.stats().memory_tokens
    session.push(video(4))
    assert session.stats().memory_tokens == prefix + 4 * TOKENS
    before = session.logits(QUESTION)
    with pytest.raises(MemoryFullError, match=r"100 tokens .*cannot take 32 more"):
        session.push(video(2))
    assert session.stats().refused == 2
    assert torch.equal(session.logits(QUESTION), before)


def test_every_frame_that_a_full_memory_leaves_out_is_counted(open_session):
    session = open_session(PlainConfig(max_tokens=200), prefill_chunk=4)
    with pytest.raises(MemoryFullError):
        session.push(video(20))
    assert (session.stats().frames, session.stats().refused) == (20, 8)


def test_a_memory_that_took_no_frame_is_not_asked(open_session):
    session = open_session(PlainConfig(max_tokens=60))
    session.push(video(4))
    with pytest.raises(MemoryFullError):
        session.ask(QUESTION, **GREEDY)
    for ask in (session.ask, session.logits):
        with pytest.raises(ValueError, match="took none of the 4 frames that were pushed"):
            ask(QUESTION)
    assert session.is_empty
    assert session.stats().refused == 4


def test_what_was_refused_is_not_what_later_frames_are_compared_with(open_session):
    session = open_session(
        PlainConfig(max_tokens=60), prune=make_pruner("dtd", threshold=0.999), prefill_chunk=1
    )
    kept = []
    for seed in range(4):
        for _ in range(2):
            try:
                kept.append(len(session.push(video(1, seed))[0].kept))
            except MemoryFullError:
                kept.append("refused")
    assert kept == [TOKENS, 0, TOKENS, 0, TOKENS, 0, "refused", "refused"]
