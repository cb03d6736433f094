# SPDX-License-Identifier: Apache-2.0
"""The ReKV memory of Qwen2-VL and Qwen2.5-VL, whose positions are time, height and width."""

from __future__ import annotations

import pytest
import torch
from rekv_oracle import RekvOracle
from test_qwen_session import CHAT, GREEDY, QUESTION, open_session, patches
from tiny_qwen_vl import NAMES, make_model, make_tokenizer

from stc_video import RekvConfig, StreamingSession, WindowConfig
from stc_video.memory import Frame, PlainConfig, PlainMemory, RekvMemory, VideoPlace

PREFIX, PROMPT, WIDTH, COLUMNS = 3, 5, 64, 4
SECTIONS = [4, 2, 2]
WORDS = slice(1, 4)
#: kept places on a grid of 4 columns, of each frame
KEPT = [[0, 5, 6], [2], [1, 3, 4, 7], [0, 1], [9, 11], [3, 8], [0, 4, 10], [6, 7]]
ROWS = 3


@pytest.fixture(scope="module", params=NAMES)
def model(request):
    return make_model(request.param)


@pytest.fixture
def writer():
    return make_tokenizer(CHAT)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def embeds(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn((tokens, WIDTH), generator=torch.Generator().manual_seed(seed))


def end(frames: int, step: int) -> int:
    return max((frames - 1) * step + 1, ROWS, COLUMNS) if frames else 0


def stream(step: int) -> list[Frame]:
    """Frames of one video, as a session places them."""
    made = []
    for number, kept in enumerate(KEPT):
        here = end(number, step)
        places = torch.tensor(kept)
        rows, columns = places // COLUMNS, places % COLUMNS
        offsets = torch.stack([torch.full_like(places, number * step), rows, columns]) - here
        place = VideoPlace(number * step - here, -here, step, max(ROWS, COLUMNS))
        span = end(number + 1, step) - here
        made.append(Frame(embeds(len(kept), number), offsets, span, number, None, place))
    return made


def logits(model, memory, prompt) -> torch.Tensor:
    context = memory.context(prompt, WORDS, "?")
    out = model.model.language_model(
        inputs_embeds=prompt[None, -1:],
        position_ids=torch.full((3, 1, 1), context.tokens),
        past_key_values=context.cache,
    )
    return model.lm_head(out.last_hidden_state[0, -1])


@pytest.mark.parametrize(("window", "budget"), [(5, 7), (6, 1000), (1000, 7), (1000, 1000)])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("step", [1, 2])
def test_equals_the_definition(model, window, budget, chunk, step):
    oracle = RekvOracle(model, window, budget, SECTIONS, step, max(ROWS, COLUMNS))
    memory = RekvMemory(
        model.model.language_model,
        RekvConfig(
            window_tokens=window,
            retrieve_tokens=budget,
            slab_bytes=1 << 18,
            host_bytes=1 << 22,
            retrieval="plain",
            recent_frames=0,
        ),
    )
    for held in (oracle, memory):
        held.begin(embeds(PREFIX, 100))
    frames = stream(step)
    for first in range(0, len(frames), chunk):
        memory.append(frames[first : first + chunk])
    for frame, kept in zip(frames, KEPT, strict=True):
        oracle.push(frame.embeds, [divmod(place, COLUMNS) for place in kept])
    prompt = embeds(PROMPT, 200)
    torch.testing.assert_close(
        logits(model, memory, prompt), oracle.logits(prompt, WORDS), atol=2e-5, rtol=0
    )


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("count", [2, 8])
def test_all_retrieved_equals_one_cache(model, step, count):
    """The plain memory is the stock model itself."""
    text = model.model.language_model
    memories = RekvMemory(text, RekvConfig()), PlainMemory(text, PlainConfig())
    for memory in memories:
        memory.begin(embeds(PREFIX, 100))
        memory.append(stream(step)[:count])
    found, expected = (logits(model, memory, embeds(PROMPT, 200)) for memory in memories)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_session_is_bounded_and_answers_like_the_plain_one(model, writer):
    pushed = patches(4)
    with open_session(model, writer) as session:
        session.push(pushed)
        expected, answer = session.logits(QUESTION), session.ask(QUESTION, **GREEDY)
    with open_session(model, writer, memory="rekv") as session:
        session.push(pushed)
        torch.testing.assert_close(session.logits(QUESTION), expected, atol=1e-5, rtol=0)
        made = session.ask(QUESTION, **GREEDY)
        assert made.ids.tolist() == answer.ids.tolist()
        assert [frame.number for frame in made.retrieved] == [0, 1, 2, 3]
    small = RekvConfig(window_tokens=12, retrieve_tokens=12, host_bytes=1 << 15, slab_bytes=1 << 14)
    with open_session(model, writer, memory=small) as session:
        session.push(patches(30))
        stats = session.stats()
        assert stats.bytes["host"] <= 1 << 15
        assert stats.evicted > 0
        assert len(session.ask(QUESTION, **GREEDY).retrieved) < 30


def test_a_saved_session_goes_on(model, writer, tmp_path):
    memory = RekvConfig(window_tokens=12, retrieve_tokens=18)
    settings = {"cache": "motion", "prune": "stc", "tokens_per_frame": 3, "memory": memory}
    frames = patches(12)
    with open_session(model, writer, **settings) as session:
        session.push(frames[:9])
        session.save(tmp_path / "saved")
        session.push(frames[9:])
        expected = session.logits(QUESTION)
    with StreamingSession.load(tmp_path / "saved", model, writer, **settings) as loaded:
        loaded.push(frames[9:])
        assert torch.equal(loaded.logits(QUESTION), expected)


@pytest.mark.parametrize("count", [1, 3])
def test_a_window_is_a_video_of_its_own(model, writer, count: int):
    frames = patches(6)
    with (
        open_session(model, writer, memory=WindowConfig(count)) as session,
        open_session(model, writer) as alone,
    ):
        session.push(frames)
        alone.push(frames[-count:])
        torch.testing.assert_close(session.logits(QUESTION), alone.logits(QUESTION))
        assert session.ask(QUESTION, **GREEDY).text == alone.ask(QUESTION, **GREEDY).text
