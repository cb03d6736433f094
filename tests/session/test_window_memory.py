# SPDX-License-Identifier: Apache-2.0
"""`memory="window"`: a few frames and nothing else."""

from __future__ import annotations

import pytest
import torch
from tiny_llava import TOKENS, make_tokenizer, video

from stc_video import StreamingSession, WindowConfig

QUESTION = "what is on the table?"
STC = {"cache": "motion", "prune": "stc", "tokens_per_frame": 6}


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_last_frames_are_a_video_of_their_own(open_session, count: int) -> None:
    frames = video(9)
    session = open_session(WindowConfig(frames=count))
    alone = open_session("plain")
    session.push(frames, timestamps=list(range(9)))
    alone.push(frames[-count:])
    torch.testing.assert_close(session.logits(QUESTION), alone.logits(QUESTION))
    answer = session.ask(QUESTION, max_new_tokens=2)
    assert [frame.number for frame in answer.retrieved] == list(range(9 - count, 9))
    assert session.stats().evicted == 9 - count
    assert session.stats().bytes["window"] == count * TOKENS * 64 * 4


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [8]), (2, [0, 8]), (5, [0, 2, 4, 6, 8]), (20, list(range(9)))]
)
def test_frames_spread_over_the_whole_video(open_session, count: int, chosen) -> None:
    frames = video(9)
    session, alone = open_session(WindowConfig(count, "uniform")), open_session("plain")
    session.push(frames)
    alone.push(frames[chosen])
    torch.testing.assert_close(session.logits(QUESTION), alone.logits(QUESTION))
    answer = session.ask(QUESTION, max_new_tokens=2)
    assert [frame.number for frame in answer.retrieved] == chosen


@pytest.mark.parametrize("spread", ["last", "uniform"])
def test_a_saved_session_goes_on(model, open_session, tmp_path, spread: str) -> None:
    frames, memory = video(9), WindowConfig(3, spread)
    session = open_session(memory, **STC)
    session.push(frames[:6])
    session.save(tmp_path)
    session.push(frames[6:])
    expected = session.logits(QUESTION)
    session.close()
    loaded = StreamingSession.load(tmp_path, model, make_tokenizer(), memory=memory, **STC)
    with loaded:
        loaded.push(frames[6:])
        assert torch.equal(loaded.logits(QUESTION), expected)


def test_settings_are_checked(open_session) -> None:
    with pytest.raises(ValueError, match="WindowConfig: frames must be a whole number from 1"):
        WindowConfig(0)
    with pytest.raises(ValueError, match="WindowConfig: spread must be one of last, uniform"):
        WindowConfig(spread="random")
    with pytest.raises(ValueError, match="memory: must be one of plain, rekv, window"):
        open_session("none")
